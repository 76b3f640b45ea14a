//! A server on a port of this machine, and a client that can also behave badly.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use haplovl::pipeline::{Engine, EngineConfig, LoadOptions, LoadedModel, Metrics, ModelSource};
use serde_json::Value;
use tokio::sync::oneshot;

use super::server::{App, Settings, router, serve};

pub struct Server {
    pub address: SocketAddr,
    pub app: Arc<App>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(settings: Settings, config: EngineConfig) -> Self {
        let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default()).unwrap();
        let app = Arc::new(App::new(Engine::new(model, config).unwrap(), settings));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = Arc::clone(&app);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let stop = async { drop(stopped.await) };
                serve(listener, router(Arc::clone(&served)), served, stop).await;
            });
        });
        Self { address, app, stop: Some(stop), thread: Some(thread) }
    }

    /// Asks the server to end.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits for the end of the server.
    pub fn join(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        Reply::read(&mut self.open(method, path, headers, body))
    }

    /// Sends a request, and leaves its answer to be read.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        open(self.address, method, path, headers, body)
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    pub fn metrics(&self) -> Metrics {
        self.app.engine.metrics()
    }

    /// Waits until the engine's metrics fulfil a condition.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Metrics) -> bool) {
        let began = Instant::now();
        while !condition(&self.metrics()) {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {:?}", self.metrics());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends a request, and leaves its answer to be read.
pub fn open(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    let has = |wanted: &[&str]| headers.iter().any(|(name, _)| wanted.contains(name));
    if !has(&["Host"]) {
        head += &format!("Host: {address}\r\n");
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if !has(&["Content-Length", "Transfer-Encoding"]) {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A server may answer, and close, before it has all of a body that it refuses.
    let _ = stream.write_all(body);
    stream
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(stream: &mut TcpStream) -> Self {
        let (mut bytes, mut part) = (Vec::new(), vec![0; 1 << 16]);
        let mut reply = loop {
            let count = match stream.read(&mut part) {
                // A server that has not read the whole request resets the connection after its answer.
                Err(e) if e.kind() == ErrorKind::ConnectionReset && !bytes.is_empty() => 0,
                read => read.unwrap(),
            };
            bytes.extend_from_slice(&part[..count]);
            match Self::parse(&bytes) {
                // Not every server closes the connection after the last byte.
                Some(reply) if count == 0 || reply.is_whole() => break reply,
                found => assert!(count > 0, "broke off: {found:?}"),
            }
        };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = joined(&reply.body);
        }
        reply
    }

    /// The head and what has come of the body.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let at = bytes.windows(4).position(|end| end == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Self { status, head, body: bytes[at + 4..].to_vec() })
    }

    fn is_whole(&self) -> bool {
        self.header("content-length").is_some_and(|length| length.parse() == Ok(self.body.len()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The JSON of a successful answer.
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The error of a failed one, after a check of its form.
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        let error = body["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && message.chars().count() <= 300 && !message.contains('\n'), "{message}");
        assert!(error["type"].is_string() && error["code"].is_string(), "{error}");
        assert!(error["param"].is_string() || error["param"].is_null(), "{error}");
        error
    }

    /// The events of a stream, which ends as it should.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!((self.status, self.header("content-type")), (200, Some("text/event-stream")), "{}", self.text());
        let mut events = Vec::from_iter(self.text().split("\n\n").filter_map(|event| event.strip_prefix("data: ")));
        assert_eq!(events.pop(), Some("[DONE]"));
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// The content of a chunked body.
fn joined(mut body: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = body.windows(2).position(|line| line == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        content.extend_from_slice(&body[end + 2..end + 2 + length]);
        body = &body[end + 4 + length..];
    }
    content
}
