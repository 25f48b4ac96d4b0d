//! Who reads `GET /fleet`, for operators.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

/// A reader of what this host tells of its lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FleetReader {
    /// The name of the reader's key in `[[peers]]`; `None` for an operator.
    pub(crate) name: Option<String>,
    /// When it has connected.
    pub(crate) since: SystemTime,
}

/// The readers that are connected. Their number is limited by the stream.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<Connected>);

#[derive(Debug, Default)]
struct Connected {
    next: u64,
    readers: BTreeMap<u64, FleetReader>,
}

/// A reader that is listed until this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    readers: Arc<Readers>,
    number: u64,
}

impl Readers {
    /// Lists a reader from now on.
    pub(super) fn register(self: &Arc<Self>, name: Option<&str>) -> Registered {
        let reader = FleetReader { name: name.map(str::to_owned), since: SystemTime::now() };
        let mut connected = self.0.lock();
        let number = connected.next;
        connected.next += 1;
        connected.readers.insert(number, reader);
        Registered { readers: Arc::clone(self), number }
    }

    /// Returns the readers in the order of their connections.
    pub(super) fn list(&self) -> Vec<FleetReader> {
        self.0.lock().readers.values().cloned().collect()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.readers.0.lock().readers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_listed_while_they_are_connected() {
        let readers = Arc::<Readers>::default();
        let first = readers.register(Some("gpu-2"));
        let _operator = readers.register(None);
        let names = || -> Vec<_> { readers.list().into_iter().map(|reader| reader.name).collect() };
        assert_eq!(names(), [Some("gpu-2".to_owned()), None]);
        drop(first);
        assert_eq!(names(), [None]);
    }
}
