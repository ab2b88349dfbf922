use std::env;
use std::path::PathBuf;

const SERVICE: &str = "/run/undercroft/undercroft.sock";

/// Where the daemon's socket is looked for when nobody says where: `$UNDERCROFT_SOCKET`; or where a
/// daemon of this user has it, if it is there; or else where the system's service has it.
#[must_use]
pub fn find_socket() -> PathBuf {
    if let Some(path) = env::var_os("UNDERCROFT_SOCKET").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let own = own_socket();
    if own.exists() { own } else { SERVICE.into() }
}

/// Where a daemon that this user starts by hand puts it. A service's own variable is not asked: it
/// would be that of the engine's unit.
fn own_socket() -> PathBuf {
    let uid = rustix::process::geteuid();
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    match runtime {
        Some(directory) => directory.join("undercroft/undercroft.sock"),
        None if uid.is_root() => SERVICE.into(),
        None => format!("/tmp/undercroft-{}/undercroft.sock", uid.as_raw()).into(),
    }
}
