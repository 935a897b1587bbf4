//! `context-patch serve` as a child, and as much of an HTTP client as it takes.
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
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

impl Response {
    /// The body, which is JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The texts of its answers.
    pub fn texts(&self) -> Vec<String> {
        let json = self.json();
        let choices = json["choices"]
            .as_array()
            .unwrap_or_else(|| panic!("{json}"));
        let text = |choice: &Value| match &choice["message"]["content"] {
            Value::Null => choice["text"].as_str().unwrap().to_owned(),
            content => content.as_str().unwrap().to_owned(),
        };
        choices.iter().map(text).collect()
    }

    /// The only answer's text.
    pub fn text(&self) -> String {
        let [text] = self.texts().try_into().unwrap();
        text
    }

    /// The events of a stream that came to its end.
    pub fn events(&self) -> Vec<Value> {
        let data = self.body.split("\n\n").filter(|event| !event.is_empty());
        let mut data: Vec<&str> = data
            .map(|event| event.strip_prefix("data: ").unwrap())
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.iter()
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }
}

/// A patch of the small model, in a file in `dir`.
pub fn patch(dir: &tempfile::TempDir) -> String {
    let file = dir.path().join("figs.patch").to_str().unwrap().to_owned();
    let context = "Ann likes plums. Bob likes figs. Bob likes";
    let done = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .args(["patch", "--model", "tiny", "--output", &file])
        .args([
            "--context",
            context,
            "--keep",
            "0",
            "--positions",
            "natural",
        ])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    file
}

/// A server that runs until this is dropped.
pub struct Server {
    child: Child,
    address: String,
}

/// What a server answered; an answer in chunks is put together.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    pub body: String,
}

impl Server {
    /// Starts it on a free port with a model and further arguments.
    pub fn start(model: &str, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", model, arguments)
    }

    /// Starts it on a port.
    pub fn start_at(address: &str, model: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_context-patch"))
            .args(["serve", "--model", model, "--listen", address])
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

    /// Where it listens: host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A connection on which nothing was sent.
    pub fn connect(&self) -> TcpStream {
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
        self.send_with(method, path, "", body)
    }

    /// Sends a request with a header, such as `"Authorization: Bearer x\r\n"`.
    pub fn send_with(&self, method: &str, path: &str, header: &str, body: &str) -> Open {
        let mut stream = self.connect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{header}Content-Length: {}\r\n\r\n{body}",
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

    /// The answer to a request for completions.
    pub fn complete(&self, body: &Value) -> Response {
        self.request("POST", "/v1/completions", &body.to_string())
    }

    /// The answer to a chat.
    pub fn chat(&self, body: &Value) -> Response {
        self.request("POST", "/v1/chat/completions", &body.to_string())
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.request("GET", "/metrics", "").body;
        let name = format!("context_patch_{name} ");
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(&name));
        value
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until nothing is asked for that is not done, and says how long that took.
    pub fn wait_until_idle(&self) -> Duration {
        self.wait_until("answers_open", 0)
    }

    /// Waits until a number of `/metrics` is as it should be, and says how long that took.
    pub fn wait_until(&self, metric: &str, value: u64) -> Duration {
        let start = Instant::now();
        while self.metric(metric) != value {
            assert!(
                start.elapsed() < PATIENCE,
                "{metric} does not become {value}"
            );
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

    /// Waits for the first event and takes it.
    pub fn first_event(&mut self) {
        self.wait();
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "no event");
        }
    }

    /// Reads to the end.
    pub fn finish(mut self) -> Response {
        self.wait();
        let status = self.head.split(' ').nth(1).unwrap().parse().unwrap();
        let head = self.head.clone();
        let body = if head.contains("transfer-encoding: chunked") {
            self.chunks()
        } else {
            let mut body = Vec::new();
            // A refused body that was not read to its end may be answered with a reset after the answer.
            let _ = self.stream.read_to_end(&mut body);
            body
        };
        Response {
            status,
            head,
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
