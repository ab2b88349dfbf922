//! `undercroft.h`, written from the crate it describes: `cargo xtask header`.

use anyhow::{Context, Result, bail};
use cbindgen::{Builder, Config};
use std::path::Path;

const CRATE: &str = "client/ffi";
const HEADER: &str = "undercroft.h";
/// The modules, in the order in which a reader meets them.
const MODULES: &[&str] =
    &["outcome", "client", "keys", "space", "lookup", "device", "transfer", "task", "blob"];

/// Writes the header, or sees that the one that is checked in is what would be written.
///
/// # Errors
/// It cannot be written, or is not what is checked in.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let place = root.join(CRATE).join(HEADER);
    let text = generate(root)?;
    if !check {
        return std::fs::write(&place, text)
            .with_context(|| format!("cannot write {}", place.display()));
    }
    let found = std::fs::read_to_string(&place)
        .with_context(|| format!("cannot read {}", place.display()))?;
    if found != text {
        let differs = found.lines().zip(text.lines()).position(|(found, made)| found != made);
        let line = differs.unwrap_or_else(|| found.lines().count().min(text.lines().count())) + 1;
        bail!(
            "{CRATE}/{HEADER} is not what the sources say, from line {line} on: run `cargo xtask header`"
        );
    }
    Ok(())
}

fn generate(root: &Path) -> Result<String> {
    let directory = root.join(CRATE);
    let configuration = directory.join("cbindgen.toml");
    let configuration = Config::from_file(&configuration)
        .map_err(|error| anyhow::anyhow!("{}: {error}", configuration.display()))?;
    let mut builder = Builder::new().with_config(configuration);
    for module in MODULES {
        builder = builder.with_src(directory.join("src").join(format!("{module}.rs")));
    }
    let bindings = builder.generate().context("cannot make the header")?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).context("the header is not text")
}
