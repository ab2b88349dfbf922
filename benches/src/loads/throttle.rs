use crate::BenchError;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const VERSION_1: &str = "/sys/fs/cgroup/blkio";
const VERSION_2: &str = "/sys/fs/cgroup";

/// A control group of our own, whose processes read from one disk no faster than is said. It is
/// removed with this, after its processes.
#[derive(Debug)]
pub(super) struct Throttle {
    group: PathBuf,
    /// The disk, as `major:minor`.
    disk: String,
    is_version_2: bool,
}

impl Throttle {
    /// For the disk that `directory` lies on.
    pub(super) fn make(directory: &Path) -> Result<Self, BenchError> {
        let disk = disk_of(directory)?;
        let name = format!("undercroft-bench-{}", std::process::id());
        let is_version_2 = !Path::new(VERSION_1).is_dir();
        let root = Path::new(if is_version_2 { VERSION_2 } else { VERSION_1 });
        let group = root.join(name);
        if is_version_2 {
            // Where it is given to groups already this changes nothing; where it may not be, the
            // file below is missing.
            let _may_fail = fs::write(root.join("cgroup.subtree_control"), "+io");
        }
        fs::create_dir(&group).map_err(|source| refused(&group, &source))?;
        let throttle = Self { group, disk, is_version_2 };
        throttle.limit(None)?;
        Ok(throttle)
    }

    pub(super) fn add(&self, process: u32) -> Result<(), BenchError> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// From here on no more than so many bytes are read each second.
    pub(super) fn limit(&self, bytes_per_s: Option<u64>) -> Result<(), BenchError> {
        if self.is_version_2 {
            let rate = bytes_per_s.map_or_else(|| "max".to_owned(), |rate| rate.to_string());
            return self.write("io.max", &format!("{} rbps={rate}", self.disk));
        }
        // 0: no bound.
        let line = format!("{} {}", self.disk, bytes_per_s.unwrap_or(0));
        self.write("blkio.throttle.read_bps_device", &line)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), BenchError> {
        let path = self.group.join(file);
        fs::write(&path, text).map_err(|source| refused(&path, &source))
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // A group that outlives us is empty, and bounds nobody.
        let _left = fs::remove_dir(&self.group);
    }
}

fn refused(path: &Path, source: &std::io::Error) -> BenchError {
    let path = path.display();
    BenchError::Option {
        option: "--ssd-path",
        problem: format!(
            "reads cannot be slowed down here ({path}: {source}): it takes root, and a control \
             group with blkio.throttle (version 1) or io.max (version 2)"
        ),
    }
}

/// The number of the disk that a directory's file system lies on: of a partition, the whole disk's.
fn disk_of(directory: &Path) -> Result<String, BenchError> {
    let device = fs::metadata(directory).map_err(BenchError::file("open", directory))?.dev();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let node = PathBuf::from(format!("/sys/dev/block/{number}"));
    if !node.exists() {
        let path = directory.display();
        let problem = format!("{path} lies on no disk of its own ({number})");
        return Err(BenchError::Option { option: "--ssd-path", problem });
    }
    if !node.join("partition").exists() {
        return Ok(number);
    }
    let whole = fs::canonicalize(&node).map_err(BenchError::file("open", &node))?;
    let whole = whole.parent().unwrap_or(&node).join("dev");
    let text = fs::read_to_string(&whole).map_err(BenchError::file("read", &whole))?;
    Ok(text.trim().to_owned())
}
