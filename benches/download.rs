//! The load client of the bench: N connections download one path again and again, and each answer is timed.
//!
//! ```text
//! download HOST:PORT PATH CONNECTIONS (seconds S | answers K | save FILE) [HEADER: VALUE]...
//! ```
//! With `seconds` connections begin no further answer after so long; with `answers` each takes that many; `save` writes
//! one body to a file. Reads into 256 KiB, counts, and throws away: what a client costs at least. One thread a connection,
//! connections are kept. The buffer begins with a page: on some AMD processors (Zen 3) the kernel copies six times slower to
//! an address that lies 1 to 31 bytes further into its page than what it copies, and large buffers of glibc lie 16 bytes
//! in. Prints one line of JSON:
//!
//! - `bytes` and `seconds`: body bytes that came while all connections were busy, and for how long
//! - `all_bytes`, `took`: those of all answers, and seconds to the last of them
//! - `answers`: for each, milliseconds from the request to the first byte of its body and to the last, and its bytes
//!
//! An answer that is not 200 or not whole ends the program with 1.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Error, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const BUFFER: usize = 256 << 10;
const PAGE: usize = 4 << 10;

/// When a connection has had enough.
#[derive(Clone)]
enum Until {
    Seconds(f64),
    Answers(u64),
    Saved(String),
}

struct Answer {
    first: Duration,
    last: Duration,
    bytes: u64,
}

fn broken(what: impl Into<String>) -> Error {
    Error::other(what.into())
}

/// What of the body is still to come.
enum Rest {
    Length(u64),
    /// In chunks: what is left of this one, its line break included, or the line that begins the next.
    Chunk(u64),
    Line(Vec<u8>),
    /// The last chunk came; the empty line after it has not.
    End(Vec<u8>),
}

impl Rest {
    fn of(head: &str) -> Result<Self, Error> {
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(broken(status));
        }
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            match (name.to_ascii_lowercase().as_str(), value.trim()) {
                ("content-length", length) => return Ok(Self::Length(length.parse().map_err(|_| broken(length))?)),
                ("transfer-encoding", "chunked") => return Ok(Self::Line(Vec::new())),
                _ => {}
            }
        }
        Err(broken("a body without an end"))
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Length(0)) || matches!(self, Self::End(line) if line.ends_with(b"\r\n"))
    }

    /// Takes some bytes; gives how many of them were of the body.
    fn take(&mut self, mut bytes: &[u8], mut keep: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<u64, Error> {
        let mut count = 0;
        while let Some(&byte) = bytes.first() {
            match self {
                Self::Length(left) => {
                    let now = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    if now == 0 {
                        return Err(broken("more than was asked for"));
                    }
                    keep(&bytes[..now])?;
                    (*left, count, bytes) = (*left - now as u64, count + now as u64, &bytes[now..]);
                }
                Self::Chunk(left) => {
                    let now = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    // The last two are the line break.
                    let body = now.min(usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX));
                    keep(&bytes[..body])?;
                    (*left, count, bytes) = (*left - now as u64, count + body as u64, &bytes[now..]);
                    if *left == 0 {
                        *self = Self::Line(Vec::new());
                    }
                }
                Self::Line(line) => {
                    line.push(byte);
                    bytes = &bytes[1..];
                    if byte == b'\n' {
                        let digits = String::from_utf8_lossy(line);
                        let size = u64::from_str_radix(digits.trim(), 16).map_err(|_| broken(digits.clone()))?;
                        *self = if size == 0 { Self::End(Vec::new()) } else { Self::Chunk(size + 2) };
                    }
                }
                Self::End(line) => {
                    line.push(byte);
                    bytes = &bytes[1..];
                }
            }
        }
        Ok(count)
    }
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    /// Where [`BUFFER`] bytes begin in `room`.
    page: usize,
    room: Vec<u8>,
}

impl Connection {
    fn new(stream: TcpStream, request: Vec<u8>) -> Self {
        let room = vec![0; BUFFER + PAGE];
        Self { stream, request, page: room.as_ptr().align_offset(PAGE), room }
    }

    fn answer(&mut self, came: &AtomicU64, mut keep: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<Answer, Error> {
        let buffer = &mut self.room[self.page..self.page + BUFFER];
        let asked = Instant::now();
        self.stream.write_all(&self.request)?;
        let (mut filled, mut rest, mut first, mut bytes) = (0, None, None, 0);
        loop {
            let read = self.stream.read(&mut buffer[filled..])?;
            if read == 0 {
                return Err(broken("the answer broke off"));
            }
            let mut now = 0;
            if rest.is_none() {
                filled += read;
                let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                rest = Some(Rest::of(&String::from_utf8_lossy(&buffer[..end]))?);
                now = end + 4;
            } else {
                filled = read;
            }
            let rest = rest.as_mut().expect("set just now");
            let body = rest.take(&buffer[now..filled], &mut keep)?;
            filled = 0;
            if body > 0 {
                first.get_or_insert_with(|| asked.elapsed());
                bytes += body;
                came.fetch_add(body, Ordering::Relaxed);
            }
            if rest.is_over() {
                let last = asked.elapsed();
                return Ok(Answer { first: first.unwrap_or(last), last, bytes });
            }
        }
    }
}

fn run() -> Result<String, Error> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [address, path, connections, kind, amount, headers @ ..] = given.as_slice() else {
        return Err(broken("HOST:PORT PATH CONNECTIONS (seconds S | answers K | save FILE) [HEADER: VALUE]..."));
    };
    let number = |text: &str| text.parse::<f64>().map_err(|_| broken(format!("{text} is no number")));
    let connections = number(connections)? as usize;
    let until = match kind.as_str() {
        "seconds" => Until::Seconds(number(amount)?),
        "answers" => Until::Answers(number(amount)? as u64),
        "save" => Until::Saved(amount.clone()),
        _ => return Err(broken(format!("{kind}?"))),
    };
    let head: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{head}\r\n").into_bytes();

    let start = Arc::new(Barrier::new(connections + 1));
    let came = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut connection = Connection::new(stream, request.clone());
        let (start, came, until) = (start.clone(), came.clone(), until.clone());
        threads.push(std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
            start.wait();
            let began = Instant::now();
            let mut answers = Vec::new();
            loop {
                let enough = match &until {
                    Until::Seconds(seconds) => began.elapsed().as_secs_f64() >= *seconds && !answers.is_empty(),
                    Until::Answers(count) => answers.len() as u64 >= *count,
                    Until::Saved(name) => {
                        let mut file = File::create(name)?;
                        answers.push(connection.answer(&came, |bytes| file.write_all(bytes))?);
                        true
                    }
                };
                if enough {
                    return Ok::<_, Error>((began.elapsed(), answers));
                }
                answers.push(connection.answer(&came, |_| Ok(()))?);
            }
        })?);
    }
    start.wait();
    let began = Instant::now();
    let mut counted = None;
    if let Until::Seconds(seconds) = until {
        std::thread::sleep(Duration::from_secs_f64(seconds));
        counted = Some((came.load(Ordering::Relaxed), began.elapsed()));
    }
    let (mut answers, mut longest) = (Vec::new(), Duration::ZERO);
    for thread in threads {
        let (took, its) = thread.join().map_err(|_| broken("a thread died"))??;
        longest = longest.max(took);
        answers.extend(its);
    }
    let all = came.load(Ordering::Relaxed);
    let (bytes, window) = counted.unwrap_or((all, longest));
    let mut line = format!(r#"{{"bytes": {bytes}, "seconds": {:.6}, "all_bytes": {all}, "#, window.as_secs_f64());
    let _ = write!(line, r#""took": {:.6}, "answers": ["#, longest.as_secs_f64());
    for (place, Answer { first, last, bytes }) in answers.iter().enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        let (first, last) = (first.as_secs_f64() * 1e3, last.as_secs_f64() * 1e3);
        let _ = write!(line, "{comma}[{first:.3}, {last:.3}, {bytes}]");
    }
    Ok(line + "]}")
}

fn main() {
    match run() {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("download: {error}");
            std::process::exit(1);
        }
    }
}
