use crate::run_as_ordinary_user;
use rustix::process::geteuid;
use std::fmt;
use std::path::Path;
use std::process::Command;

/// Where a hostile client runs, and with which rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Beside the daemon, as its own user.
    Beside,
    /// Beside the daemon, as an ordinary user.
    User,
    /// As root of a user namespace of an ordinary user, with mounts and processes of its own.
    UserNamespace,
    /// As root in a container, with the rights that container engines give by default.
    Container,
    /// As root in a container that may mount, load modules and all else, except for looking into
    /// processes: whoever may do that over the machine's users is root of the machine.
    Privileged,
}

const CONTAINED: [&str; 4] = ["--mount", "--pid", "--fork", "--mount-proc"];
const DEFAULT_RIGHTS: &str = "--bounding-set=-all,+chown,+dac_override,+fsetid,+fowner,+mknod,\
    +net_raw,+setgid,+setuid,+setfcap,+setpcap,+net_bind_service,+sys_chroot,+kill,+audit_write";

impl Place {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Beside, Self::User, Self::UserNamespace, Self::Container, Self::Privileged];

    /// A command that runs a program there.
    #[must_use]
    pub fn command(self, program: &Path) -> Command {
        let mut command = match self {
            Self::Beside => return Command::new(program),
            Self::User => return run_as_ordinary_user(program),
            Self::UserNamespace => {
                let mut command = run_as_ordinary_user(Path::new("unshare"));
                command.args(["--user", "--map-root-user"]).args(CONTAINED);
                command
            }
            Self::Container | Self::Privileged => {
                let mut command = Command::new("unshare");
                command.args(CONTAINED).arg("setpriv");
                let rights = if self == Self::Container {
                    DEFAULT_RIGHTS
                } else {
                    "--bounding-set=-sys_ptrace"
                };
                command.args([rights, "--inh-caps=-all"]);
                command
            }
        };
        command.arg(program);
        command
    }

    /// What keeps programs from being run there, if anything does.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        if !geteuid().is_root() && !matches!(self, Self::Beside | Self::UserNamespace) {
            return Some(format!("only root can run a client as {self}"));
        }
        match self.command(Path::new("true")).output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                let error = String::from_utf8_lossy(&output.stderr);
                Some(format!("nothing runs as {self} here: {}", error.trim_end()))
            }
            Err(error) => Some(format!("nothing runs as {self} here: {error}")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Beside => "the daemon's user",
            Self::User => "an ordinary user",
            Self::UserNamespace => "root of a user namespace",
            Self::Container => "root in a container",
            Self::Privileged => "root in a privileged container",
        })
    }
}
