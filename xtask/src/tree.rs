use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A text file of the checkout: what tidy reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Relative to the workspace root, with `/` between components.
    pub(crate) path: String,
    /// The whole content.
    pub(crate) text: String,
}

/// Directories that hold build products or other people's data, at any depth.
const SKIPPED_DIRECTORIES: &[&str] = &[".git", "target", "corpus", "artifacts", "coverage"];

/// The root of the workspace: the parent of xtask's own directory, or of its manifest when the
/// binary runs under cargo.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = own.parent().context("xtask's directory has no parent")?;
    Ok(root.to_path_buf())
}

/// Every text file below `root`, sorted by path. Walks the directory instead of asking git, so
/// that it works in an unpacked archive too.
pub(crate) fn load(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
            let path = entry.path();
            let kind =
                entry.file_type().with_context(|| format!("cannot stat {}", path.display()))?;
            if kind.is_dir() {
                let name = entry.file_name();
                if !SKIPPED_DIRECTORIES.iter().any(|skipped| name == *skipped) {
                    pending.push(path);
                }
            } else if kind.is_file() && entry.file_name() != ".git" {
                files.extend(read(root, &path)?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// One file; `None` if it is not text.
fn read(root: &Path, path: &Path) -> Result<Option<File>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        // An editor's temporary file may go between listing and reading.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let relative = path.strip_prefix(root).context("a listed file lies outside the root")?;
    let path = relative.to_string_lossy().replace('\\', "/");
    Ok(String::from_utf8(bytes).ok().map(|text| File { path, text }))
}
