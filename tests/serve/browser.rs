//! A real browser without a window, driven over the W3C WebDriver protocol.
#![allow(dead_code, reason = "each test file compiles this module and uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Reply, open};

/// The key under which the protocol names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Longest wait for a condition; a debug build on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A browser, ended when this is dropped.
pub struct Browser {
    address: SocketAddr,
    session: String,
    driver: Driver,
    _profile: TempDir,
}

/// The program that drives the browser. Its output stays open, so that writing there does not end it.
struct Driver(Child, BufReader<ChildStdout>);

impl Driver {
    /// Starts the driver, which says the port that it chose; `None` where it is not installed.
    fn start() -> Option<(Self, SocketAddr)> {
        let started = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = started.ok()?;
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut driver = Self(child, output);
        let lines = driver.1.by_ref().lines().map_while(Result::ok);
        let port = lines
            .into_iter()
            .find_map(|line| line.split("successfully on port ").nth(1)?.trim_end_matches('.').parse().ok());
        Some((driver, (Ipv4Addr::LOCALHOST, port.expect("the driver's port")).into()))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let path = format!("/session/{}", self.session);
        // The browser ends with the session; it would also end with the driver, which holds its pipe.
        drop(std::panic::catch_unwind(|| Reply::read(&mut open(self.address, "DELETE", &path, &[], b""))));
        let _ = self.driver.0.kill();
    }
}

impl Browser {
    /// Starts a browser of this size; `None` where there is none.
    pub fn start(width: u32, height: u32) -> Option<Self> {
        let (driver, address) = Driver::start()?;
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless=new".into(),
            // Root has no sandbox.
            "--no-sandbox".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-gpu".into(),
            "--remote-debugging-pipe".into(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let options = json!({ "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" } });
        let body = json!({ "capabilities": { "alwaysMatch": options } }).to_string();
        let reply = Reply::read(&mut open(address, "POST", "/session", &[], body.as_bytes())).json();
        let session = reply["value"]["sessionId"].as_str().unwrap().into();
        Some(Self { address, session, driver, _profile: profile })
    }

    fn call(&self, method: &str, command: &str, body: &Value) -> Value {
        let (path, body) = (format!("/session/{}/{command}", self.session), body.to_string());
        let body = if method == "GET" { "" } else { &body };
        Reply::read(&mut open(self.address, method, &path, &[], body.as_bytes())).json()["value"].take()
    }

    pub fn go(&self, url: &str) {
        self.call("POST", "url", &json!({ "url": url }));
    }

    /// Runs a script's function body in the page; a promise is waited for.
    pub fn run(&self, script: &str, arguments: Value) -> Value {
        self.call("POST", "execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// The value of an expression in the page.
    pub fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}"), json!([]))
    }

    /// Waits until an expression in the page is true.
    pub fn wait(&self, expression: &str) {
        let began = Instant::now();
        while self.value(&format!("Boolean({expression})")) != true {
            assert!(began.elapsed() < PATIENCE, "{expression}\n{}", self.value("document.body.innerText"));
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    fn element(&self, selector: &str) -> String {
        let found = self.call("POST", "element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().unwrap().into()
    }

    /// Clicks the first element of a CSS selector, as a user does: it must be in sight, and nothing over it.
    pub fn click(&self, selector: &str) {
        self.call("POST", &format!("element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types into an element; into one that chooses files, their paths.
    pub fn type_into(&self, selector: &str, text: &str) {
        self.call("POST", &format!("element/{}/value", self.element(selector)), &json!({ "text": text }));
    }

    /// A command of the browser's own protocol.
    pub fn devtools(&self, command: &str, parameters: Value) {
        self.call("POST", "goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
    }

    /// Errors of scripts, of requests, and of the page's policy since the last call.
    pub fn errors(&self) -> Vec<Value> {
        let entries = self.call("POST", "se/log", &json!({ "type": "browser" }));
        entries.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE").cloned().collect()
    }

    /// Writes what is in sight to a PNG file.
    pub fn screenshot(&self, path: &Path) {
        let png = self.call("GET", "screenshot", &Value::Null);
        std::fs::write(path, BASE64_STANDARD.decode(png.as_str().unwrap()).unwrap()).unwrap();
    }
}
