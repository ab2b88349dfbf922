use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A store as it was once written and is kept with the sources of `ssd-tier`: `plain`, `encrypted`,
/// `turned` (plain first, then encrypted), `mended` or `mended-plain` (left open, then sealed by
/// the next process but for a damaged record). Unpacked into `directory`, with its key beside it.
///
/// # Panics
/// If there is no such store, or the directory cannot be written.
#[must_use]
pub fn golden_store(name: &str, directory: &Path) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ssd-tier/src/tests/golden");
    let packed = fs::read(sources.join(format!("{name}.store.zst"))).expect("a golden store");
    let log = directory.join("pages-0.log");
    fs::write(&log, zstd::decode_all(&packed[..]).expect("zstd")).expect("our folder");
    if !name.ends_with("plain") {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut key = options.open(directory.join("store.key")).expect("our folder");
        key.write_all(&[0x5a; 32]).expect("our folder");
    }
    log
}
