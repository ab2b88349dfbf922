//! `undercroft.h`, written from the crate it describes: `cargo xtask header`.

use anyhow::{Context, Result, bail};
use cbindgen::{Builder, Config};
use std::collections::BTreeSet;
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
    let library = directory.join("src/lib.rs");
    let text = std::fs::read_to_string(&library)
        .with_context(|| format!("cannot read {}", library.display()))?;
    see_all(&text)?;
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

/// What is exported lies in the crate's public modules: one that is not in the header's list would be
/// left out of it without a word.
fn see_all(library: &str) -> Result<()> {
    let public =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let public: BTreeSet<&str> = public.collect();
    let listed: BTreeSet<&str> = MODULES.iter().copied().collect();
    let differ: Vec<_> = public.symmetric_difference(&listed).collect();
    if !differ.is_empty() {
        bail!(
            "{differ:?}: either public in {CRATE}/src/lib.rs or in the list of the header's modules \
             in xtask, allowed both"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_is_in_no_header_is_told() {
        let all: String = MODULES.iter().map(|module| format!("pub mod {module};\n")).collect();
        assert!(see_all(&format!("//! Words.\n{all}\nmod grows;\n")).is_ok());
        let told = see_all(&format!("{all}pub mod newest;\n")).expect_err("it is not in the list");
        assert!(told.to_string().contains("newest"), "{told}");
        assert!(see_all(&all.replace("pub mod task;\n", "mod task;\n")).is_err());
    }
}
