use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Ask;

/// Lets some requests of a kind fail.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) ask: Ask,
    pub(super) skip: usize,
    pub(super) times: usize,
    pub(super) what: What,
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum What {
    /// It is answered with a status, and with a `Retry-After` of so many seconds.
    Status(u16, Option<u64>),
    /// It is answered with a status and a body of the media type `application/json`.
    Body(u16, String),
    /// The connection ends without an answer, after the request's body was read up to so many bytes
    /// (and kept, for an upload).
    Drop(u64),
    /// The answer's body ends with a broken connection after so many bytes.
    Cut(u64),
    /// It is sent to the same path at another origin (`http://host:port`).
    Redirect(String),
    /// The answer's body has a wrong first byte.
    Corrupt,
    /// The request waits until the gate is opened.
    Hold(Gate),
    /// The request waits.
    Delay(Duration),
}

impl Fault {
    /// The next request of a kind.
    pub fn next(ask: Ask, what: What) -> Self {
        Self { ask, skip: 0, times: 1, what }
    }

    /// Every request of a kind from now on.
    pub fn always(ask: Ask, what: What) -> Self {
        Self { ask, skip: 0, times: usize::MAX, what }
    }

    /// Not the next `skip` requests.
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// So many requests.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }
}

/// The fault that falls on a request now, if one does.
pub(super) fn take(faults: &mut Vec<Fault>, ask: Ask) -> Option<What> {
    let mut hit = None;
    for fault in faults.iter_mut().filter(|fault| fault.ask == ask && fault.times > 0) {
        if fault.skip > 0 {
            fault.skip -= 1;
        } else if hit.is_none() {
            fault.times = if fault.times == usize::MAX { fault.times } else { fault.times - 1 };
            hit = Some(fault.what.clone());
        }
    }
    faults.retain(|fault| fault.times > 0);
    hit
}

/// Holds requests back until it is opened.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// A closed gate.
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets all through, now and later.
    pub fn open(&self) {
        self.0.close();
    }

    pub(super) async fn wait(&self) {
        self.0.acquire().await.map(drop).ok(); // a closed semaphore is an open gate
    }
}
