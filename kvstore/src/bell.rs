//! How other threads wake the control thread: they put their word into a bounded channel and ring.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use tokio::sync::Notify;

/// The sending end, for copy workers and device threads.
#[derive(Debug)]
pub(crate) struct Bell<T> {
    words: Sender<T>,
    notify: Arc<Notify>,
}

impl<T> Clone for Bell<T> {
    fn clone(&self) -> Self {
        Self { words: self.words.clone(), notify: Arc::clone(&self.notify) }
    }
}

/// The control thread's end.
#[derive(Debug)]
pub(crate) struct Door<T> {
    words: Receiver<T>,
    notify: Arc<Notify>,
}

/// A channel with room for `room` words that wakes a tokio task.
pub(crate) fn bell<T>(room: usize) -> (Bell<T>, Door<T>) {
    let (sender, receiver) = bounded(room);
    let notify = Arc::new(Notify::new());
    (Bell { words: sender, notify: Arc::clone(&notify) }, Door { words: receiver, notify })
}

impl<T> Bell<T> {
    /// Hands a word over. Waits when the control thread is behind: it always drains the channel
    /// and never waits for the threads that ring.
    pub(crate) fn ring(&self, word: T) {
        if self.words.send(word).is_ok() {
            self.notify.notify_one();
        }
    }
}

impl<T> Door<T> {
    /// Waits until somebody rang since the last call.
    pub(crate) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Has [`Door::rung`] return once more, for words that were left.
    pub(crate) fn look_again(&self) {
        self.notify.notify_one();
    }

    /// The next word, if there is one.
    pub(crate) fn take(&self) -> Option<T> {
        self.words.try_recv().ok()
    }
}
