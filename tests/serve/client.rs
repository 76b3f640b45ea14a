//! A server on a port of this machine.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use haplovl::pipeline::{Engine, EngineConfig, LoadOptions, LoadedModel, Metrics, ModelSource};
use serde_json::Value;
use tokio::sync::oneshot;

use super::http::{Reply, connect, open};
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
        Self::over(Engine::new(model, config).unwrap(), settings)
    }

    pub fn over(engine: Engine, settings: Settings) -> Self {
        let app = Arc::new(App::new(engine, settings));
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
