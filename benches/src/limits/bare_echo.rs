use crate::BenchError;
use crate::daemon::folder;
use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const KEY_BYTES: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What the far end of the bare echo is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoOptions {
    /// The socket to connect to.
    pub socket: PathBuf,
    /// Bytes of a request.
    pub request_bytes: usize,
    /// Bytes of a reply.
    pub reply_bytes: usize,
    /// Keys at the head of each request that are looked for in a table of as many. The first
    /// request fills the table.
    pub probes: usize,
}

/// The far end of the bare echo, in a process of its own as the daemon is: reads a request,
/// probes its table, writes a reply, until the near end hangs up.
///
/// # Errors
/// The socket cannot be reached or breaks.
pub fn echo_peer(options: &EchoOptions) -> Result<(), BenchError> {
    let failed = || BenchError::system("echo over a socket");
    let mut socket = UnixStream::connect(&options.socket).map_err(failed())?;
    answer(&mut socket, options).map_err(failed())
}

fn answer(socket: &mut UnixStream, options: &EchoOptions) -> std::io::Result<()> {
    let mut request = vec![0; options.request_bytes];
    let mut reply = vec![0; options.reply_bytes];
    let mut table = None;
    loop {
        match socket.read_exact(&mut request) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let keys = request[..options.probes * KEY_BYTES].as_chunks::<KEY_BYTES>().0;
        let found = table.get_or_insert_with(|| Table::new(keys)).count(keys);
        reply[..4].copy_from_slice(&(found as u32).to_le_bytes());
        socket.write_all(&reply)?;
    }
}

/// Open addressing at most half full: what any index of whole keys costs at least.
struct Table {
    slots: Vec<Option<[u8; KEY_BYTES]>>,
}

impl Table {
    fn new(keys: &[[u8; KEY_BYTES]]) -> Self {
        let mut table = Self { slots: vec![None; (2 * keys.len()).next_power_of_two()] };
        for key in keys {
            let slot = table.slot(key);
            table.slots[slot] = Some(*key);
        }
        table
    }

    fn slot(&self, key: &[u8; KEY_BYTES]) -> usize {
        let mask = self.slots.len() - 1;
        let [a, b, c, d, ..] = *key;
        let mut slot = u32::from_le_bytes([a, b, c, d]) as usize & mask;
        while self.slots[slot].as_ref().is_some_and(|held| held != key) {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn count(&self, keys: &[[u8; KEY_BYTES]]) -> usize {
        black_box(keys).iter().filter(|key| self.slots[self.slot(key)].is_some()).count()
    }
}

/// The near end: round trips of so many bytes with a bare process, nothing else done.
pub(super) struct BareEcho {
    socket: UnixStream,
    request: Vec<u8>,
    reply: Vec<u8>,
    peer: Child,
    _home: TempDir,
}

impl BareEcho {
    /// Starts the far end. `head` is the head of each request: the keys it probes for.
    pub(super) fn start(
        binary: &Path,
        request_bytes: usize,
        reply_bytes: usize,
        head: &[[u8; KEY_BYTES]],
    ) -> Result<Self, BenchError> {
        let failed = || BenchError::system("start the bare echo");
        let home = folder("undercroft-echo-", &std::env::temp_dir())?;
        let path = home.path().join("s");
        let listener = UnixListener::bind(&path).map_err(failed())?;
        listener.set_nonblocking(true).map_err(failed())?;
        let mut peer = Command::new(binary)
            .args(["bench", "echo", "--socket"])
            .arg(&path)
            .arg(format!("--request-bytes={request_bytes}"))
            .arg(format!("--reply-bytes={reply_bytes}"))
            .arg(format!("--probes={}", head.len()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(BenchError::file("run", binary))?;
        let socket = match accept(&listener, &mut peer) {
            Ok(socket) => socket,
            Err(source) => {
                let _gone = peer.kill();
                let _reaped = peer.wait();
                return Err(failed()(source));
            }
        };
        let mut request = head.as_flattened().to_vec();
        request.resize(request_bytes, 0);
        let mut echo = Self { socket, request, reply: vec![0; reply_bytes], peer, _home: home };
        // Fills the far end's table.
        echo.round_trip().map_err(failed())?;
        Ok(echo)
    }

    /// One round trip.
    pub(super) fn round_trip(&mut self) -> std::io::Result<()> {
        self.socket.write_all(&self.request)?;
        self.socket.read_exact(&mut self.reply)
    }

    /// How many of the probes found their key, as the last reply says.
    pub(super) fn found(&self) -> u32 {
        self.reply.first_chunk().map_or(0, |head| u32::from_le_bytes(*head))
    }
}

fn accept(listener: &UnixListener, peer: &mut Child) -> std::io::Result<UnixStream> {
    let since = Instant::now();
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false)?;
                return Ok(socket);
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            Err(_) if since.elapsed() > PATIENCE => return Err(ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
        if let Some(status) = peer.try_wait()? {
            return Err(std::io::Error::other(format!("its far end ended: {status}")));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

impl Drop for BareEcho {
    fn drop(&mut self) {
        let _gone = self.socket.shutdown(std::net::Shutdown::Both);
        let _gone = self.peer.kill();
        let _reaped = self.peer.wait();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn the_far_end_probes_and_answers_until_the_near_end_hangs_up() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let options = EchoOptions {
            socket: PathBuf::new(),
            request_bytes: 5 * KEY_BYTES + 3,
            reply_bytes: 12,
            probes: 5,
        };
        let peer = std::thread::spawn(move || answer(&mut far, &options));
        let mut request = vec![0_u8; 5 * KEY_BYTES + 3];
        for (index, key) in request.chunks_mut(KEY_BYTES).enumerate() {
            key.fill(index as u8 * 50);
        }
        for expected in [5_u32, 4] {
            near.write_all(&request).unwrap();
            let mut reply = [0; 12];
            near.read_exact(&mut reply).unwrap();
            assert_eq!(reply[..4], expected.to_le_bytes());
            request[0] = 77;
        }
        drop(near);
        peer.join().unwrap().unwrap();
    }
}
