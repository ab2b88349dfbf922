use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// A bar of `steps` on standard error; invisible where that is not a terminal.
pub(crate) fn bar(steps: u64, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = format!("{{bar:30}} {{pos}}/{{len}} {unit} {{elapsed}} (left {{eta}}) {{msg}}");
    let style = ProgressStyle::with_template(&template)
        .expect("the template is a constant")
        .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(5));
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
