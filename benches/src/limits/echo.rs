use super::far_end::{EchoOptions, KEY_BYTES};
use crate::BenchError;
use crate::daemon::folder;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The far end of an echo, running in a process of its own as the daemon does.
pub(super) struct FarEnd {
    options: EchoOptions,
    /// What each request begins with: the keys it probes for.
    head: Vec<[u8; KEY_BYTES]>,
    peer: Child,
    _home: TempDir,
}

/// What goes to and fro.
#[derive(Debug, Clone, Copy)]
pub(super) struct EchoShape<'a> {
    pub(super) request_bytes: usize,
    pub(super) reply_bytes: usize,
    /// The keys at the head of each request.
    pub(super) head: &'a [[u8; KEY_BYTES]],
    /// Whether a single-threaded tokio runtime answers, or a thread that does nothing else.
    pub(super) tokio: bool,
}

impl FarEnd {
    pub(super) fn start(binary: &Path, shape: EchoShape<'_>) -> Result<Self, BenchError> {
        let home = folder("undercroft-echo-", &std::env::temp_dir())?;
        let options = EchoOptions {
            socket: home.path().join("s"),
            request_bytes: shape.request_bytes,
            reply_bytes: shape.reply_bytes,
            probes: shape.head.len(),
            tokio: shape.tokio,
        };
        let mut command = Command::new(binary);
        command.args(["bench", "echo", "--socket"]).arg(&options.socket);
        command.arg(format!("--request-bytes={}", options.request_bytes));
        command.arg(format!("--reply-bytes={}", options.reply_bytes));
        command.arg(format!("--probes={}", options.probes));
        if options.tokio {
            command.arg("--tokio");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let peer = command.spawn().map_err(BenchError::file("run", binary))?;
        Ok(Self { options, head: shape.head.to_vec(), peer, _home: home })
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.options.socket.clone()
    }

    /// A near end of it. Without tokio there is one in all.
    pub(super) fn connect(&mut self) -> Result<Echo, BenchError> {
        let since = Instant::now();
        let failed = || BenchError::system("start an echo");
        loop {
            match Echo::connect(&self.options, &self.head) {
                Err(error)
                    if since.elapsed() < PATIENCE
                        && matches!(
                            error.kind(),
                            ErrorKind::NotFound | ErrorKind::ConnectionRefused
                        ) => {}
                other => return other.map_err(failed()),
            }
            if let Some(status) = self.peer.try_wait().map_err(failed())? {
                let problem = format!("its far end ended: {status}");
                return Err(failed()(std::io::Error::other(problem)));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        let _gone = self.peer.kill();
        let _reaped = self.peer.wait();
    }
}

/// The near end: round trips of so many bytes, nothing else done.
pub(super) struct Echo {
    socket: UnixStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Echo {
    pub(super) fn connect(
        options: &EchoOptions,
        head: &[[u8; KEY_BYTES]],
    ) -> std::io::Result<Self> {
        let socket = UnixStream::connect(&options.socket)?;
        let mut request = head.as_flattened().to_vec();
        request.resize(options.request_bytes, 0);
        let mut echo = Self { socket, request, reply: vec![0; options.reply_bytes] };
        // Fills the far end's table.
        echo.round_trip()?;
        Ok(echo)
    }

    /// One round trip.
    pub(super) fn round_trip(&mut self) -> std::io::Result<()> {
        self.socket.write_all(&self.request)?;
        self.socket.read_exact(&mut self.reply)
    }

    #[cfg(test)]
    pub(super) fn request_mut(&mut self) -> &mut [u8] {
        &mut self.request
    }

    /// How many of the probes found their key, as the last reply says.
    pub(super) fn found(&self) -> u32 {
        self.reply.first_chunk().map_or(0, |head| u32::from_le_bytes(*head))
    }
}
