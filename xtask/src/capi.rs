//! The C library as people install it: `cargo xtask capi`.

use crate::command::{cargo, check, target_directory};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const CRATE: &str = "client/ffi";
/// The first number of the library's name: it changes when something that was there is gone.
const MAJOR: &str = "1";
/// What a Rust library needs of the system's.
const SYSTEM: &[&str] = &["-lgcc_s", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"];

/// Builds the library and puts it together with its header into `to`: `include/`, `lib/` and
/// `lib/pkgconfig/`. Says where.
///
/// # Errors
/// A step failed.
pub(crate) fn run(root: &Path, release: bool, to: Option<PathBuf>) -> Result<PathBuf> {
    let mut build = cargo(root);
    build.args(["build", "--locked", "--package", "undercroft-ffi"]);
    let profile = if release { "release" } else { "debug" };
    if release {
        build.arg("--release");
    }
    check(&mut build)?;
    let built = target_directory(root)?.join(profile);
    let to = to.unwrap_or_else(|| built.join("capi"));
    // What is written into the packages' descriptions holds wherever they are read.
    let to = std::path::absolute(&to).with_context(|| format!("cannot find {}", to.display()))?;
    let (include, library) = (to.join("include"), to.join("lib"));
    for folder in [&include, &library.join("pkgconfig")] {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let sources = root.join(CRATE);
    copy(&sources.join("undercroft.h"), &include.join("undercroft.h"))?;
    copy(&built.join("libundercroft.a"), &library.join("libundercroft.a"))?;
    link(&sources, &library)?;
    let system = SYSTEM.join(" ");
    let statically = format!("-l:libundercroft.a {system}");
    for (name, libraries) in [("undercroft", "-lundercroft"), ("undercroft-static", &statically)] {
        write(&library.join(format!("pkgconfig/{name}.pc")), &package(&to, name, libraries))?;
    }
    println!("capi: {}", to.display());
    Ok(to)
}

/// Links the shared library. The compiler would give its symbols no version: it names them in a script of its
/// own without one, and linkers take no second.
fn link(sources: &Path, library: &Path) -> Result<()> {
    let name = format!("libundercroft.so.{MAJOR}");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut script = OsString::from("-Wl,--version-script=");
    script.push(sources.join("undercroft.map"));
    // Beside the old one and then in its place: programs that run have it open.
    let new = library.join(format!("{name}.new"));
    let mut command = Command::new(compiler);
    command.args(["-shared", "-nodefaultlibs", "-o"]).arg(&new).arg(script);
    command.arg(format!("-Wl,-soname,{name}"));
    command.args(["-Wl,--no-undefined-version", "-Wl,-z,defs", "-Wl,--gc-sections"]);
    // A host may unload a plug-in that has it while a thread of it still ends.
    command.arg("-Wl,-z,nodelete");
    command.args(["-Wl,-z,relro,-z,now", "-Wl,--as-needed", "-Wl,--whole-archive"]);
    command.arg(library.join("libundercroft.a")).arg("-Wl,--no-whole-archive").args(SYSTEM);
    check(&mut command)?;
    let place = library.join(&name);
    std::fs::rename(&new, &place).with_context(|| format!("cannot write {}", place.display()))?;
    let short = library.join("libundercroft.so");
    if short.symlink_metadata().is_err() {
        symlink(&name, &short).with_context(|| format!("cannot make {}", short.display()))?;
    }
    Ok(())
}

/// What `pkg-config` reads. Of the static library there is a description of its own: beside the shared one a linker
/// takes that for the same name.
fn package(to: &Path, name: &str, libraries: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "prefix={}\n\
         libdir=${{prefix}}/lib\n\
         Name: {name}\n\
         Description: KV-cache pages kept on this node, for serving engines\n\
         Version: {version}\n\
         Cflags: -I${{prefix}}/include\n\
         Libs: -L${{libdir}} {libraries}\n",
        to.display().to_string().replace(' ', "\\ "),
    )
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn write(to: &Path, text: &str) -> Result<()> {
    std::fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_names_its_folder_whatever_is_in_its_name() {
        let text = package(Path::new("/opt/of mine"), "undercroft", "-lundercroft");
        assert!(text.starts_with("prefix=/opt/of\\ mine\n"), "{text}");
        assert!(text.contains("Libs: -L${libdir} -lundercroft\n"), "{text}");
    }
}
