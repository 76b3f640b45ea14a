//! Many requests of mixed kinds, a tenth of them broken on purpose: no wrong answer to the others, no panic, memory and
//! open files back to where they were.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use haplovl::pipeline::{EngineConfig, VisualQuestionAnswerer};
use haplovl::processor::RgbImage;
use serde_json::{Value, json};

use super::client::Server;
use super::http::Reply;
use super::server::Settings;
use super::{CHAT, about, data_url, image_part, memory, scene, text_of};

/// Environment variable of the number of requests.
const REQUESTS: &str = "HAPLOVL_SOAK_REQUESTS";
const CLIENTS: usize = 8;
/// After this time the program's memory is what it stays.
const WARM_UP: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(15 * 60);
const JSON: (&str, &str) = ("Content-Type", "application/json");

/// A request and what it must answer.
struct Case {
    path: &'static str,
    body: Value,
    right: Value,
}

impl Case {
    /// A case whose right answer is that of the idle server.
    fn new(server: &Server, path: &'static str, body: Value) -> Self {
        let right = essence(path, &body, &server.post(path, &body));
        Self { path, body, right }
    }

    fn check(&self, server: &Server) {
        let answer = essence(self.path, &self.body, &server.post(self.path, &self.body));
        assert_eq!(answer, self.right, "{}", self.path);
    }
}

/// What is the same whenever it is asked for.
fn essence(path: &str, body: &Value, reply: &Reply) -> Value {
    if body["stream"] == true {
        return text_of(&reply.events()).into();
    }
    let mut answer = reply.json();
    match path {
        CHAT if body["n"].is_null() => answer["choices"][0]["message"]["content"].take(),
        CHAT | "/v1/completions" => answer["choices"].take(),
        "/v1/embeddings" => answer["data"].take(),
        _ => answer["images"].take(),
    }
}

fn cases(server: &Server) -> Vec<Case> {
    let answerer = VisualQuestionAnswerer::new(server.app.engine.model());
    let mut cases = Vec::new();
    for index in 0..12 {
        for question in ["describe the image.", "how many objects are there?"] {
            let right = answerer.ask([scene(index).into()], question).unwrap().sequence.text;
            let body = about(index, question, json!({ "stream": index % 2 == 0 }));
            cases.push(Case { path: CHAT, body, right: right.into() });
        }
        let body = about(index, "list all objects.", json!({ "n": 3, "temperature": 1.0, "seed": index }));
        cases.push(Case::new(server, CHAT, body));
        let body = json!({ "prompt": format!("there are {index} objects"), "max_tokens": 8 });
        cases.push(Case::new(server, "/v1/completions", body));
        let input = json!([format!("a red ring {index}"), image_part(&data_url(&scene(index)))]);
        cases.push(Case::new(server, "/v1/embeddings", json!({ "input": input })));
        let mut body = about(index, "is there a red ring?", json!({ "word": "red", "layer": index % 2 }));
        body.as_object_mut().unwrap().remove("model");
        cases.push(Case::new(server, "/v1/attention", body));
    }
    cases
}

/// A request that is wrong, or whose client behaves badly.
fn misbehave(server: &Server, kind: usize, settings: &Settings, bomb: &str) {
    let send = |body: &[u8]| server.send("POST", CHAT, &[JSON], body);
    let with_image = |url: &str| json!({ "messages": [{ "role": "user", "content": [image_part(url)] }] });
    let many = about(kind as u64, "describe the image.", json!({ "n": 8, "stream": true })).to_string();
    match kind % 11 {
        0 => drop(server.open("POST", CHAT, &[JSON, ("Content-Length", "5000")], &many.as_bytes()[..900])),
        1 => drop(send(&vec![b' '; settings.max_body + 1]).error(413)),
        2 => drop(send(b"{\"messages\": [nonsense").error(400)),
        3 => drop(server.post(CHAT, &with_image("data:image/png;base64,*?")).error(400)),
        4 => drop(server.post(CHAT, &with_image(bomb)).error(400)),
        // A slow reader, who gives up.
        5 => {
            let mut stream = server.open("POST", CHAT, &[JSON], many.as_bytes());
            let _ = stream.read(&mut [0; 1]);
            thread::sleep(Duration::from_millis(400));
        }
        // A cancelled stream.
        6 => drop(server.open("POST", CHAT, &[JSON], many.as_bytes()).read_exact(&mut [0; 300])),
        7 => {
            let mut stream = server.connect();
            let _ = stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        }
        8 => drop(server.connect().write_all(b"POST /v1/chat/completions HTT")),
        9 => drop(server.post(CHAT, &about(1, &"red ".repeat(5000), json!({}))).error(400)),
        // 100 MB, now and then.
        _ if kind.is_multiple_of(5) => {
            static LARGE: OnceLock<Vec<u8>> = OnceLock::new();
            drop(send(LARGE.get_or_init(|| vec![b' '; 100_000_000])).error(413));
        }
        _ => drop(server.post(CHAT, &about(1, "x", json!({ "invented": kind }))).error(400)),
    }
}

/// Memory of this process in bytes, and its open files.
fn resources() -> (usize, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * 4096, std::fs::read_dir("/proc/self/fd").unwrap().count())
}

#[test]
#[ignore = "takes up to 15 minutes; HAPLOVL_SOAK_REQUESTS sets the number of requests"]
fn soak() {
    let requests = std::env::var(REQUESTS).map_or(10_000, |count| count.parse().expect(REQUESTS));
    // As the program does.
    memory::keep();
    let settings =
        Settings { max_body: 4 << 20, max_pixels: 1 << 20, patience: Duration::from_secs(2), ..Settings::default() };
    let config = EngineConfig::default().with_queue(256).with_kv_cache_bytes(Some(48 << 20));
    let server = Server::start(settings.clone(), config);
    let cases = cases(&server);
    let bomb = data_url(&RgbImage::new(4000, 4000));
    // The server's side of the connections so far is closed.
    wait_for_files(&server, 0);
    let (at_start, files) = resources();
    let panics = count_panics();

    let (next, settled, began) = (AtomicUsize::new(0), OnceLock::new(), Instant::now());
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= requests {
                return;
            }
            // A short run is settled halfway.
            if began.elapsed() >= WARM_UP || n == requests / 2 {
                settled.get_or_init(|| resources().0);
            }
            match n % 10 {
                9 => misbehave(&server, n / 10, &settings, &bomb),
                8 => assert_eq!(server.get(["/", "/metrics", "/examples/3.png", "/health"][n / 10 % 4]).status, 200),
                _ => cases[n.wrapping_mul(2_654_435_761) % cases.len()].check(&server),
            }
        }
    };
    thread::scope(|scope| (0..CLIENTS).for_each(|_| drop(scope.spawn(work))));
    let elapsed = began.elapsed();
    server.wait_for("idle", |metrics| metrics.running + metrics.waiting == 0);
    wait_for_files(&server, files);
    let (at_end, settled) = (resources().0, *settled.get().unwrap());
    eprintln!(
        "{requests} requests in {:.0} s; memory in MiB: {} at the start, {} settled, {} at the end; {files} open files",
        elapsed.as_secs_f64(),
        at_start >> 20,
        settled >> 20,
        at_end >> 20,
    );
    assert_eq!(panics.load(Ordering::Relaxed), 0, "panics");
    let metrics = server.metrics();
    assert_eq!((metrics.requests.failed, metrics.requests.timed_out, metrics.kv_reserved_bytes), (0, 0, 0));
    assert!(!server.get("/metrics").text().contains("status=\"500\""));
    cases.iter().for_each(|case| case.check(&server));
    assert!(elapsed < LONGEST, "{elapsed:?}");
    assert!(at_end as f64 <= settled as f64 * 1.05, "memory grew from {settled} to {at_end} bytes");
}

/// Waits until connections are closed and as many files are open as before; 0: until connections are closed.
fn wait_for_files(server: &Server, files: usize) {
    let began = Instant::now();
    loop {
        // The connection that asks is one.
        let closed = server.get("/metrics").text().contains("\nhaplovl_http_connections 1\n");
        let open = resources().1;
        if closed && (files == 0 || open <= files) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{open} open files, {files} at the start");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Counts panics of all threads from now on, and still reports them.
fn count_panics() -> Arc<AtomicUsize> {
    let panics = Arc::new(AtomicUsize::new(0));
    let (count, report) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        count.fetch_add(1, Ordering::Relaxed);
        report(panic);
    }));
    panics
}
