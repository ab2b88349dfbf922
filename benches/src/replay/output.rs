use super::ReplayReport;
use super::tally::Line;
use crate::BenchError;
use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file to be written at the end of a run, tried at its start. It appears whole or not at all.
pub(crate) struct Output {
    path: PathBuf,
    target: Target,
}

enum Target {
    Stdout,
    /// Something that is there and no regular file: a pipe, a terminal.
    Direct(File),
    Staged(NamedTempFile),
}

impl Output {
    pub(crate) fn open(path: &Path) -> Result<Self, BenchError> {
        let failed = || BenchError::file("create", path);
        let special = path.metadata().is_ok_and(|facts| !facts.is_file());
        let target = if path == Path::new("-") {
            Target::Stdout
        } else if special {
            Target::Direct(File::options().write(true).open(path).map_err(failed())?)
        } else {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let staged = tempfile::Builder::new()
                .prefix(".undercroft-bench-")
                .permissions(Permissions::from_mode(0o644))
                .tempfile_in(folder.unwrap_or(Path::new(".")));
            Target::Staged(staged.map_err(failed())?)
        };
        Ok(Self { path: path.to_owned(), target })
    }

    pub(crate) fn write(self, content: &[u8]) -> Result<(), BenchError> {
        let written = match self.target {
            Target::Stdout => std::io::stdout().lock().write_all(content),
            Target::Direct(mut file) => file.write_all(content),
            Target::Staged(mut file) => file
                .write_all(content)
                .and_then(|()| file.persist(&self.path).map(drop).map_err(|error| error.error)),
        };
        written.map_err(BenchError::file("write", self.path))
    }
}

/// Where the results of a replay go.
pub(super) struct Outputs {
    csv: Option<Output>,
    json: Option<Output>,
}

impl Outputs {
    pub(super) fn open(csv: Option<&Path>, json: Option<&Path>) -> Result<Self, BenchError> {
        Ok(Self {
            csv: csv.map(Output::open).transpose()?,
            json: json.map(Output::open).transpose()?,
        })
    }

    pub(super) fn write(self, report: &ReplayReport, lines: &[Line]) -> Result<(), BenchError> {
        if let Some(csv) = self.csv {
            csv.write(&csv_text(lines))?;
        }
        if let Some(json) = self.json {
            json.write(&json_text(report))?;
        }
        Ok(())
    }
}

pub(crate) fn json_text(report: &impl serde::Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(report).expect("a report holds numbers and texts only");
    text.push(b'\n');
    text
}

pub(crate) fn csv_text(lines: &[Line]) -> Vec<u8> {
    let mut text = BufWriter::new(Vec::new());
    let mut write = || {
        writeln!(text, "request,pages,prefix_hit,dram_hit,ssd_hit")?;
        lines.iter().try_for_each(|line| {
            let Line { request, pages, dram_hit, ssd_hit } = line;
            writeln!(text, "{request},{pages},{},{dram_hit},{ssd_hit}", dram_hit + ssd_hit)
        })
    };
    write().expect("memory can be written to");
    text.into_inner().expect("memory can be written to")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        drop(Output::open(&path).unwrap());
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        Output::open(&path).unwrap().write(b"{}\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{}\n");
        assert!(Output::open(&dir.path().join("no/out")).is_err());
    }

    #[test]
    fn the_csv_is_what_was_promised() {
        let line = Line { request: 7, pages: 5, dram_hit: 2, ssd_hit: 1 };
        let text = String::from_utf8(csv_text(&[line])).unwrap();
        assert_eq!(text, "request,pages,prefix_hit,dram_hit,ssd_hit\n7,5,3,2,1\n");
    }
}
