//! A bounded live feed of texts, each of them a JSON object: the last ones, and those that follow.
//! Nothing waits for a reader: one that is slow loses texts, and learns how many.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;

/// Texts that a reader may be behind.
const MAX_BEHIND: usize = 1024;
/// Texts that a new reader gets first.
const MAX_KEPT: usize = 256;

/// A live feed, such as the lines of the log. Clones share the texts.
#[derive(Clone)]
pub struct Feed(Arc<Shared>);

struct Shared {
    /// Locked while a text is sent, so that a new reader gets each text once.
    kept: Mutex<VecDeque<Arc<str>>>,
    sender: broadcast::Sender<Arc<str>>,
}

impl Feed {
    /// Adds a text. Never blocks for readers.
    pub fn push(&self, text: Arc<str>) {
        let mut kept = self.0.kept.lock();
        if kept.len() == MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&text));
        // Fails only if the feed has no readers.
        self.0.sender.send(text).ok();
    }

    /// Returns the last texts, oldest first, and what receives those that follow.
    pub(crate) fn subscribe(&self) -> (Vec<Arc<str>>, broadcast::Receiver<Arc<str>>) {
        let kept = self.0.kept.lock();
        (kept.iter().cloned().collect(), self.0.sender.subscribe())
    }
}

impl Default for Feed {
    fn default() -> Self {
        let (sender, _) = broadcast::channel(MAX_BEHIND);
        Self(Arc::new(Shared { kept: Mutex::default(), sender }))
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("kept", &self.0.kept.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::RecvError;

    use super::*;

    #[tokio::test]
    async fn readers_get_last_texts_first_and_slow_ones_lose_some() {
        let feed = Feed::default();
        for number in 0..MAX_KEPT + 1 {
            feed.push(number.to_string().into());
        }
        let (kept, mut next) = feed.subscribe();
        assert_eq!((kept.len(), &*kept[0]), (MAX_KEPT, "1"));
        (0..MAX_BEHIND + 5).for_each(|number| feed.push(number.to_string().into()));
        assert_eq!(next.recv().await, Err(RecvError::Lagged(5)));
        assert_eq!(next.recv().await.as_deref(), Ok("5"));
    }
}
