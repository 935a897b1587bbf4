//! The example `server` as a child, and as much of an HTTP client as it takes.
#![allow(
    dead_code,
    reason = "the test and the benchmark use a part of this each"
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests and benchmarks fail by panicking"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs until this is dropped.
pub struct Server {
    child: Child,
    address: String,
}

/// What a server answered; an answer in chunks is put together.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

/// The example's program, which cargo puts beside the folder of this one.
fn program() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().and_then(|deps| deps.parent()).unwrap();
    let name = format!("server{}", std::env::consts::EXE_SUFFIX);
    let program = profile.join("examples").join(name);
    assert!(
        program.exists(),
        "no {}: `cargo test` builds it, one test or benchmark alone does not; run `cargo build --release --example server`",
        program.display()
    );
    program
}

impl Server {
    /// Starts it on a free port with the model of a directory and further arguments.
    pub fn start(model: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["--model", model, "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("the server said {line:?}"));
        Self {
            address: address.into(),
            child,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends bytes of any kind, and gives back whatever comes until the server closes.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // A server that refuses early may close before all is sent, and may reset what it does not read.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// A client that never sends the rest of its request.
    pub fn stuck(&self) -> TcpStream {
        let mut stream = self.connect();
        let begun = "POST /generate HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n{";
        stream.write_all(begun.as_bytes()).unwrap();
        stream
    }

    /// Sends a request.
    pub fn send(&self, method: &str, path: &str, body: &str) -> Open {
        let mut stream = self.connect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // The answer to a body that is too large may come before all of it is sent.
        let _ = stream.write_all(request.as_bytes());
        Open {
            stream: BufReader::new(stream),
            head: String::new(),
        }
    }

    /// The whole answer to a request.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Response {
        self.send(method, path, body).finish()
    }

    /// The whole answer to a request for a text.
    pub fn generate(&self, body: &str) -> Response {
        self.request("POST", "/generate", body)
    }

    /// A number of `/health`.
    pub fn health(&self, field: &str) -> u64 {
        let response = self.request("GET", "/health", "");
        let health: serde_json::Value = serde_json::from_str(&response.body).unwrap();
        health[field].as_u64().unwrap()
    }

    /// Waits until nothing is running or waiting, and says how long that took.
    pub fn wait_until_idle(&self) -> Duration {
        let start = Instant::now();
        while self.health("running") + self.health("waiting") > 0 {
            assert!(start.elapsed() < PATIENCE, "a generation does not end");
        }
        start.elapsed()
    }

    /// The memory it has in use in bytes, mapped files included; `None` where the system does not say.
    pub fn resident(&self) -> Option<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? << 10)
    }

    /// Its threads; `None` where the system does not say.
    pub fn threads(&self) -> Option<usize> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        Some(tasks.count())
    }

    /// Sends a signal, such as "INT" for Ctrl-C.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &id])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request that was sent. Dropped, it is a client that goes away.
pub struct Open {
    stream: BufReader<TcpStream>,
    /// The status line and the headers, once they were read.
    head: String,
}

impl Open {
    /// Reads the headers, unless they were read, and waits for something of the body.
    pub fn wait(&mut self) {
        while !self.head.ends_with("\r\n\r\n") {
            let read = self.stream.read_line(&mut self.head).unwrap();
            assert!(read > 0, "the answer ends after {:?}", self.head);
        }
        // An early end shows when the body is read.
        let _ = self.stream.fill_buf();
    }

    /// Waits for the first token and takes it.
    pub fn first_token(&mut self) {
        self.wait();
        let mut line = String::new();
        while !line.starts_with("{\"id\"") {
            line.clear();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "no token");
        }
    }

    /// Reads to the end.
    pub fn finish(mut self) -> Response {
        self.wait();
        let status = self.head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if self.head.contains("transfer-encoding: chunked") {
            self.chunks()
        } else {
            let mut body = Vec::new();
            // A refused body that was not read to its end may be answered with a reset after the answer.
            let _ = self.stream.read_to_end(&mut body);
            body
        };
        Response {
            status,
            body: String::from_utf8(body).unwrap(),
        }
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let mut size = String::new();
            self.stream.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).unwrap();
            if size == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    /// The rest of a streamed answer whose first token was read, chunk sizes and all.
    pub fn rest(mut self) -> String {
        let mut rest = String::new();
        self.stream.read_to_string(&mut rest).unwrap();
        rest
    }
}
