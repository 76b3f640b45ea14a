//! An HTTP client that can also behave badly.
#![allow(dead_code, reason = "each test file compiles this module and uses a part of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

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

pub fn connect(address: SocketAddr) -> TcpStream {
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
