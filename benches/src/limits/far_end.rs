use crate::BenchError;
use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinSet, LocalSet};

pub(super) const KEY_BYTES: usize = 32;

/// What the far end of an echo is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoOptions {
    /// The socket to listen at; it must not exist.
    pub socket: PathBuf,
    /// Bytes of a request.
    pub request_bytes: usize,
    /// Bytes of a reply.
    pub reply_bytes: usize,
    /// Keys at the head of each request that are looked for in a table of as many. The first
    /// request fills the table.
    pub probes: usize,
    /// Whether to serve any number of connections from a single-threaded tokio runtime, as the
    /// daemon's control thread does, instead of one by blocking calls.
    pub tokio: bool,
}

/// The far end of an echo, in a process of its own as the daemon is: reads a request, probes its
/// table, writes a reply, until all near ends have hung up.
///
/// # Errors
/// The socket cannot be made or breaks.
pub fn echo_peer(options: &EchoOptions) -> Result<(), BenchError> {
    let failed = || BenchError::system("echo over a socket");
    let listener = UnixListener::bind(&options.socket).map_err(failed())?;
    if options.tokio {
        return serve(listener, options).map_err(failed());
    }
    let (mut socket, _) = listener.accept().map_err(failed())?;
    answer(&mut socket, options).map_err(failed())
}

fn answer(socket: &mut (impl Read + Write), options: &EchoOptions) -> std::io::Result<()> {
    let mut far = Far::new(options);
    loop {
        match socket.read_exact(&mut far.request) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        socket.write_all(far.answer())?;
    }
}

fn serve(listener: UnixListener, options: &EchoOptions) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let mut serving = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let far = Far::new(options);
                    serving.spawn_local(answer_one(accepted?.0, far));
                }
                Some(_ended) = serving.join_next() => {
                    if serving.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    })
}

async fn answer_one(mut socket: tokio::net::UnixStream, mut far: Far) -> std::io::Result<()> {
    loop {
        socket.read_exact(&mut far.request).await?;
        socket.write_all(far.answer()).await?;
    }
}

/// One connection's buffers and table.
struct Far {
    request: Vec<u8>,
    reply: Vec<u8>,
    probes: usize,
    table: Option<Table>,
}

impl Far {
    fn new(options: &EchoOptions) -> Self {
        Self {
            request: vec![0; options.request_bytes],
            reply: vec![0; options.reply_bytes],
            probes: options.probes,
            table: None,
        }
    }

    fn answer(&mut self) -> &[u8] {
        let keys = self.request[..self.probes * KEY_BYTES].as_chunks::<KEY_BYTES>().0;
        let found = self.table.get_or_insert_with(|| Table::new(keys)).count(keys);
        self.reply[..4].copy_from_slice(&(found as u32).to_le_bytes());
        &self.reply
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use crate::limits::echo::Echo;
    use std::time::{Duration, Instant};

    #[test]
    fn either_far_end_probes_and_answers_until_the_near_end_hangs_up() {
        for tokio in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let options = EchoOptions {
                socket: home.path().join("s"),
                request_bytes: 5 * KEY_BYTES + 3,
                reply_bytes: 12,
                probes: 5,
                tokio,
            };
            let head: Vec<[u8; KEY_BYTES]> = (0..5).map(|index| [index * 50; KEY_BYTES]).collect();
            let theirs = options.clone();
            let peer = std::thread::spawn(move || echo_peer(&theirs));
            let since = Instant::now();
            let mut near = loop {
                match Echo::connect(&options, &head) {
                    Ok(near) => break near,
                    Err(error) => assert!(since.elapsed() < Duration::from_secs(10), "{error}"),
                }
            };
            assert_eq!(near.found(), 5);
            near.round_trip().unwrap();
            assert_eq!(near.found(), 5);
            near.request_mut()[0] = 77;
            near.round_trip().unwrap();
            assert_eq!(near.found(), 4);
            drop(near);
            peer.join().unwrap().unwrap();
        }
    }
}
