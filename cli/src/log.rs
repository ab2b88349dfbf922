//! Log lines on their way to standard error. Whoever reads them may be slow, stopped or full, and the
//! control thread of the daemon must not wait for that: lines go through a bounded queue to a thread
//! of their own, and what finds no room is counted and dropped.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written.
const ROOM: usize = 4096;
/// How long the end of the process waits for them.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it looks whether there is room to ask for that.
const PAUSE: Duration = Duration::from_millis(5);

enum Word {
    Line(Vec<u8>),
    /// All before it is to be written.
    Flush(SyncSender<()>),
}

/// The sending end: where lines are written to. It never waits.
#[derive(Clone)]
pub(crate) struct LogQueue {
    words: SyncSender<Word>,
    lost: Arc<AtomicU64>,
}

impl LogQueue {
    /// Starts the thread that writes to `sink`.
    pub(crate) fn start(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (words, queue) = sync_channel(ROOM);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let body = move || write_all(&queue, &counted, sink);
        thread::Builder::new().name("log".to_owned()).spawn(body)?;
        Ok(Self { words, lost })
    }

    /// Waits a moment for what was said before.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        let until = Instant::now() + PATIENCE;
        while self.words.try_send(Word::Flush(done.clone())).is_err() {
            if Instant::now() >= until {
                return;
            }
            thread::sleep(PAUSE);
        }
        // Nobody may be reading: then the lines are lost, and nobody misses them.
        let _unwritten = written.recv_timeout(PATIENCE);
    }
}

fn write_all(queue: &Receiver<Word>, lost: &AtomicU64, mut sink: impl Write) {
    for word in queue {
        // Whoever read it may be gone; the daemon serves all the same.
        match word {
            Word::Line(line) => {
                let _unread = sink.write_all(&line);
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _unread = writeln!(
                        sink,
                        "{lost} lines of the log were dropped: it is read too slowly"
                    );
                }
            }
            Word::Flush(done) => {
                let _unread = sink.flush();
                let _gone = done.try_send(());
            }
        }
    }
}

/// One line while it is made.
pub(crate) struct Line<'a> {
    queue: &'a LogQueue,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, bytes: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = Word::Line(std::mem::take(&mut self.bytes));
        if self.queue.words.try_send(line).is_err() {
            self.queue.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::sync::Mutex;

    /// Takes nothing until it is told to.
    struct Stuck {
        until: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error says that it is told to for good.
            let _for_good = self.until.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_that_is_stuck_and_what_is_dropped_is_counted() {
        let (go, until) = sync_channel(0);
        let written = Arc::new(Mutex::new(Vec::new()));
        let queue = LogQueue::start(Stuck { until, written: Arc::clone(&written) }).unwrap();
        let (said, done) = sync_channel(1);
        let speaker = queue.clone();
        thread::spawn(move || {
            for line in 0..ROOM + 100 {
                writeln!(speaker.make_writer(), "line {line}").unwrap();
            }
            said.send(()).unwrap();
        });
        done.recv_timeout(Duration::from_secs(60)).expect("whoever speaks does not wait");
        drop(go);
        queue.flush();
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(written.starts_with("line 0\n"));
        // One line may be on its way out of the queue while the rest comes.
        let told = ["99", "100"].map(|lost| format!("\n{lost} lines of the log were dropped"));
        assert!(told.iter().any(|told| written.contains(told)), "{written}");
    }
}
