use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flate2::{Compress, Crc, FlushCompress, Status};

/// Data is packed in blocks of this size, each knowing the end of the one before; larger blocks pack
/// better, smaller ones spread better. A change changes every layer's digest.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// How much of the block before a block may refer to: all that the format can.
const WINDOW_BYTES: usize = 32 << 10;

/// Writes one gzip member, packing its blocks on several threads.
///
/// Blocks are cut by size alone and packed each on its own, so the bytes depend on neither the number of
/// threads nor on how the data came in.
pub(super) struct GzipWriter<W: Write> {
    output: W,
    level: u32,
    /// The block that fills up; in front of it the end of the one before.
    block: Vec<u8>,
    window: usize,
    jobs: Option<SyncSender<Job>>,
    queue: VecDeque<Receiver<io::Result<Packed>>>,
    queue_max: usize,
    workers: Vec<JoinHandle<()>>,
    crc: Crc,
    started: bool,
}

struct Job {
    data: Vec<u8>,
    window: usize,
    level: u32,
    last: bool,
    answer: Sender<io::Result<Packed>>,
}

struct Packed {
    bytes: Vec<u8>,
    crc: Crc,
}

impl<W: Write> GzipWriter<W> {
    /// A writer of the level (1 to 9) that packs on `threads` threads, or on its own where none can be
    /// started.
    pub(super) fn new(output: W, level: u32, threads: usize) -> Self {
        let threads = threads.clamp(1, 64);
        let (jobs, inbox) = sync_channel(threads);
        let inbox = Arc::new(Mutex::new(inbox));
        let mut workers = Vec::new();
        for _ in 0..threads {
            let inbox = Arc::clone(&inbox);
            let worker = std::thread::Builder::new().name("gzip".to_owned()).spawn(move || work(&inbox));
            match worker {
                Ok(worker) => workers.push(worker),
                // A limit on processes: fewer will do.
                Err(_) => break,
            }
        }
        Self {
            output,
            level: level.clamp(1, 9),
            block: Vec::with_capacity(WINDOW_BYTES + BLOCK_BYTES),
            window: 0,
            jobs: (!workers.is_empty()).then_some(jobs),
            queue: VecDeque::new(),
            queue_max: 2 * threads + 1,
            workers,
            crc: Crc::new(),
            started: false,
        }
    }

    /// Packs the rest and ends the member; gives the output back.
    ///
    /// # Errors
    /// Of the output.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.send(true)?;
        while !self.queue.is_empty() {
            self.receive()?;
        }
        self.start()?;
        self.output.write_all(&self.crc.sum().to_le_bytes())?;
        self.output.write_all(&self.crc.amount().to_le_bytes())?;
        self.jobs = None;
        for worker in self.workers {
            worker.join().ok(); // a panic there had no block left to lose
        }
        Ok(self.output)
    }

    fn start(&mut self) -> io::Result<()> {
        if !self.started {
            self.started = true;
            // No name, no time, unknown system: nothing that differs from one machine to the next.
            self.output.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff])?;
        }
        Ok(())
    }

    /// Hands the block to the workers and begins the next one.
    fn send(&mut self, last: bool) -> io::Result<()> {
        while self.queue.len() >= self.queue_max {
            self.receive()?;
        }
        let mut next = Vec::with_capacity(WINDOW_BYTES + BLOCK_BYTES);
        let window = self.block.len().min(WINDOW_BYTES);
        next.extend_from_slice(&self.block[self.block.len() - window..]);
        let data = std::mem::replace(&mut self.block, next);
        let (answer, packed) = channel();
        let job = Job { data, window: self.window, level: self.level, last, answer };
        self.window = window;
        match &self.jobs {
            Some(jobs) => jobs.send(job).map_err(|_| gone())?,
            None => run(&job),
        }
        self.queue.push_back(packed);
        Ok(())
    }

    /// Writes the oldest block out.
    fn receive(&mut self) -> io::Result<()> {
        let Some(answer) = self.queue.pop_front() else { return Ok(()) };
        let packed = answer.recv().map_err(|_| gone())??;
        self.crc.combine(&packed.crc);
        self.start()?;
        self.output.write_all(&packed.bytes)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BLOCK_BYTES - (self.block.len() - self.window);
        // A full block waits for more, so that the last one is never empty unless all is.
        if room == 0 {
            self.send(false)?;
            return self.write(bytes);
        }
        let n = room.min(bytes.len());
        self.block.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::other("a packing thread ended early")
}

fn work(inbox: &Mutex<Receiver<Job>>) {
    loop {
        let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        run(&job);
    }
}

fn run(job: &Job) {
    // Nobody waits for the answer any more where the writer has failed.
    job.answer.send(pack(job)).ok();
}

/// Packs one block as raw deflate data that ends on a byte, so that the next one can follow.
fn pack(job: &Job) -> io::Result<Packed> {
    let (window, data) = job.data.split_at(job.window);
    let mut crc = Crc::new();
    crc.update(data);
    let mut compress = Compress::new(flate2::Compression::new(job.level), false);
    if !window.is_empty() {
        compress.set_dictionary(window).map_err(io::Error::other)?;
    }
    let mut bytes = Vec::with_capacity(data.len() / 2 + 64);
    let flush = if job.last { FlushCompress::Finish } else { FlushCompress::Sync };
    loop {
        let done = usize::try_from(compress.total_in()).unwrap_or(usize::MAX);
        if bytes.capacity() - bytes.len() < 64 {
            bytes.reserve(data.len() / 2 + 64);
        }
        let status = compress.compress_vec(&data[done..], &mut bytes, flush).map_err(io::Error::other)?;
        let all_in = compress.total_in() == data.len() as u64;
        let room_left = bytes.len() < bytes.capacity();
        match status {
            Status::StreamEnd => break,
            // A sync flush is complete once there was room to spare.
            Status::Ok | Status::BufError if !job.last && all_in && room_left => break,
            Status::Ok | Status::BufError => {
                bytes.reserve(data.len() / 2 + 64);
            }
        }
    }
    Ok(Packed { bytes, crc })
}
