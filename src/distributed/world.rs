//! The ranks of a run, as one of them sees them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::alone::Alone;
use super::exchange::DeviceLink;
use super::threads::Thread;
use super::transport::{Message, Transport};
use crate::error::one_line;
use crate::{Error, Result};

/// Longest silence of a rank that another one waits for, unless [`World::with_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Signs of life that a waiting rank sends in the time after which its silence would end the run.
const SIGNS_OF_LIFE: u32 = 8;
/// Time in which a waiting rank only lets other threads run; then it sleeps between looks.
const AWAKE: Duration = Duration::from_millis(20);
/// Sleep between two looks for a message.
const SLEEP: Duration = Duration::from_micros(50);
/// Looks for one message after which the other ranks are looked at.
const LOOKS: u32 = 200;
/// Longest time that a failing rank spends on telling the others.
const FAREWELL: Duration = Duration::from_secs(2);

/// The ranks of a run, as one of them sees them; a clone is another handle to the same rank.
///
/// Operations of several ranks are called by all of them in the same order. Waits end with an error when the awaited rank
/// has failed, is gone, or has been silent for the [time limit](Self::with_timeout); the error names the rank.
#[derive(Clone)]
pub struct World {
    pub(super) transport: Arc<dyn Transport>,
    /// What carries tensors in place of the transport.
    pub(super) link: Option<Arc<dyn DeviceLink>>,
    state: Arc<Mutex<State>>,
    timeout: Duration,
}

/// What a rank knows of the others.
struct State {
    /// Messages that were received while waiting for another rank, at most one of each.
    early: Vec<Option<Message>>,
    /// Time of the last message of each rank.
    heard: Vec<Instant>,
    /// Time of the last sign of life to the others.
    shown: Instant,
    /// The rank that failed first, and its error.
    failure: Option<(usize, String)>,
}

impl Default for World {
    /// A world of one rank.
    fn default() -> Self {
        Self::over(Alone)
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

impl World {
    /// A world over a transport.
    pub fn over(transport: impl Transport + 'static) -> Self {
        let (size, now) = (transport.size(), Instant::now());
        let early = (0..size).map(|_| None).collect();
        let state = State { early, heard: vec![now; size], shown: now, failure: None };
        let (transport, state) = (Arc::new(transport), Arc::new(Mutex::new(state)));
        Self { transport, link: None, state, timeout: DEFAULT_TIMEOUT }
    }

    /// The ranks of a run of `size` threads of this process, in order; each belongs to one thread.
    pub fn threads(size: usize) -> Vec<Self> {
        Thread::ranks(size).into_iter().map(Self::over).collect()
    }

    /// The same world in which a rank that is waited for may be silent for so long, by default 30 minutes. It must be longer
    /// than rank 0 takes for an evaluation, a checkpoint or the export, while the others wait.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The same world whose [exchanges](Self::exchange) go by this link. All ranks have one, or none has.
    #[must_use]
    pub fn with_link(self, link: impl DeviceLink + 'static) -> Self {
        Self { link: Some(Arc::new(link)), ..self }
    }

    /// Number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.transport.size()
    }

    /// Whether this is rank 0, which alone logs, evaluates and exports.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The other ranks, in order.
    pub fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank();
        (0..self.size()).filter(move |rank| *rank != own)
    }

    /// A small value of every rank, in the order of ranks.
    ///
    /// # Errors
    /// If a rank has failed or is silent, and if a value cannot be read.
    pub fn gather_all<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<Vec<T>> {
        let text = encode(&value)?;
        self.others().try_for_each(|rank| self.transport.send(rank, Message::Text(text.clone())))?;
        let mut own = Some(value);
        let of = |rank| match own.take_if(|_| rank == self.rank()) {
            Some(own) => Ok(own),
            None => self.receive_text(rank),
        };
        (0..self.size()).map(of).collect()
    }

    /// Whether this holds for any rank.
    ///
    /// # Errors
    /// As [`Self::gather_all`].
    pub fn any(&self, holds: bool) -> Result<bool> {
        Ok(self.gather_all(holds)?.contains(&true))
    }

    /// The result of this rank if no rank has an error, so that all ranks go on or none does.
    ///
    /// # Errors
    /// The error of this rank, else that of the first rank that has one; and as [`Self::gather_all`].
    pub fn agree<T>(&self, result: Result<T>) -> Result<T> {
        let errors = self.gather_all(result.as_ref().err().map(ToString::to_string))?;
        let value = result?;
        match errors.into_iter().enumerate().find_map(|(rank, error)| Some((rank, error?))) {
            Some((rank, error)) => Err(self.failed(rank, error)),
            None => Ok(value),
        }
    }

    /// The result of `f` on rank 0, which the others wait for; its error is one of all ranks.
    ///
    /// # Errors
    /// Those of `f`, and as [`Self::gather_all`].
    pub fn from_first<T: Serialize + DeserializeOwned>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.is_first() {
            let result: std::result::Result<T, String> = self.receive_text(0)?;
            return result.map_err(|error| self.failed(0, error));
        }
        let result = f();
        let text = encode(&result.as_ref().map_err(ToString::to_string))?;
        self.others().try_for_each(|rank| self.transport.send(rank, Message::Text(text.clone())))?;
        result
    }

    /// The elements that another rank has sent, if they have arrived.
    pub(super) fn try_receive_values(&self, from: usize, count: usize) -> Result<Option<Tensor>> {
        match self.next(from)? {
            None => Ok(None),
            Some(Message::Values(values)) if values.elem_count() == count => Ok(Some(values)),
            Some(other) => Err(out_of_step(from, &format!("{count} values"), &other)),
        }
    }

    /// Polls until there is a result, while `rank` is waited for, or all ranks.
    ///
    /// # Errors
    /// Those of `poll`, of a rank that has failed meanwhile, and if `rank` is silent for too long, or nothing comes of all
    /// ranks.
    pub fn wait_for<T>(
        &self,
        rank: impl Into<Option<usize>>,
        mut poll: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let (rank, began, mut looks) = (rank.into(), Instant::now(), 0u32);
        loop {
            if let Some(found) = poll()? {
                return Ok(found);
            }
            match began.elapsed() < AWAKE {
                true => std::thread::yield_now(),
                false => std::thread::sleep(SLEEP),
            }
            looks = (looks + 1) % LOOKS;
            if looks == 0 {
                self.look_around(rank, began)?;
            }
        }
    }

    /// Waits until all ranks are here and everything is sent, so that this rank may end.
    ///
    /// # Errors
    /// As [`Self::gather_all`].
    pub fn finish(&self) -> Result<()> {
        self.gather_all(())?;
        self.wait_for(self.rank(), || Ok(self.transport.is_idle()?.then_some(())))
    }

    /// Tells the other ranks that this one has failed, which ends their waits.
    pub fn fail(&self, error: &Error) {
        let own = (self.rank(), one_line(&error.to_string()));
        let (rank, error) = self.state().failure.clone().unwrap_or(own);
        for other in self.others() {
            // A rank that is gone needs no message.
            let _ = self.transport.send(other, Message::Failure { rank, error: error.clone() });
        }
        let began = Instant::now();
        while began.elapsed() < FAREWELL && matches!(self.transport.is_idle(), Ok(false)) {
            std::thread::sleep(SLEEP);
        }
    }

    /// Ends the processes of all ranks at once; does nothing where ranks are threads of one process.
    pub fn abort(&self) {
        self.transport.abort();
    }

    fn receive_text<T: DeserializeOwned>(&self, from: usize) -> Result<T> {
        match self.wait_for(from, || self.next(from))? {
            Message::Text(text) => serde_json::from_str(&text)
                .map_err(|e| Error::training(format!("rank {from} sent what cannot be read: {e}")).caused_by(e)),
            other => Err(out_of_step(from, "a text", &other)),
        }
    }

    /// The next message of a rank that is no sign of life.
    fn next(&self, from: usize) -> Result<Option<Message>> {
        let early = self.state().early.get_mut(from).and_then(Option::take);
        let message = if early.is_some() { early } else { self.transport.try_receive(from)? };
        let Some(message) = message else { return Ok(None) };
        if let Some(heard) = self.state().heard.get_mut(from) {
            *heard = Instant::now();
        }
        match message {
            Message::Alive => Ok(None),
            Message::Failure { rank, error } => Err(self.failed(rank, error)),
            message => Ok(Some(message)),
        }
    }

    /// Looks for failures of all ranks while one of them is waited for, and shows that this one is alive.
    fn look_around(&self, waited_for: Option<usize>, began: Instant) -> Result<()> {
        for rank in self.others() {
            let is_free = self.state().early.get(rank).is_some_and(Option::is_none);
            match if is_free { self.next(rank) } else { Ok(None) } {
                Ok(None) => {}
                Ok(message) => self.state().early[rank] = message,
                Err(error) if Some(rank) == waited_for || self.state().failure.is_some() => return Err(error),
                // Whoever is not waited for may be done.
                Err(_) => {}
            }
        }
        if self.state().shown.elapsed() * SIGNS_OF_LIFE > self.timeout {
            self.state().shown = Instant::now();
            self.others().for_each(|rank| drop(self.transport.send(rank, Message::Alive)));
        }
        let heard = waited_for.and_then(|rank| self.state().heard.get(rank).copied());
        let silence = heard.map_or(began, |heard| heard.max(began)).elapsed();
        if silence <= self.timeout {
            return Ok(());
        }
        let (own, seconds) = (self.rank(), silence.as_secs_f64());
        let what = match waited_for {
            Some(rank) => {
                format!("rank {rank} has been silent for {seconds:.0} s, and rank {own} waits for it: it hangs")
            }
            None => format!("rank {own} has waited {seconds:.0} s for tensors of all ranks: one of them hangs"),
        };
        Err(Error::training(format!("{what} or is gone; end what is left of the run, and resume it")))
    }

    /// The error of another rank, which is remembered as the first.
    fn failed(&self, rank: usize, error: String) -> Error {
        let message = format!("rank {rank} failed: {error}");
        self.state().failure.get_or_insert((rank, error));
        Error::training(message)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::training(format!("a message cannot be written: {e}")).caused_by(e))
}

/// The error for ranks that do not run the same program.
fn out_of_step(from: usize, expected: &str, found: &Message) -> Error {
    let found = match found {
        Message::Values(values) => format!("{} values", values.elem_count()),
        _ => "a text".into(),
    };
    Error::training(format!(
        "rank {from} sent {found}, expected {expected}: start all ranks with the same program, recipe and options"
    ))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Runs `f` on each rank of a world of threads.
    fn on_each<T: Send>(size: usize, timeout: Duration, f: impl Fn(World) -> T + Sync) -> Vec<T> {
        let f = &f;
        std::thread::scope(|scope| {
            let worlds = World::threads(size).into_iter().map(|world| world.with_timeout(timeout));
            let running: Vec<_> = worlds.map(|world| scope.spawn(move || f(world))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn values(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    /// Waits for `count` elements of a rank.
    fn receive(world: &World, from: usize, count: usize) -> Result<()> {
        let counts = (0..world.size()).map(|rank| if rank == from { count } else { 0 }).collect();
        world.exchange(vec![values(&[]); world.size()], counts)?.wait().map(drop)
    }

    #[test]
    fn exchanges_give_every_rank_its_part_of_each() {
        for tensors in on_each(3, DEFAULT_TIMEOUT, |world| {
            // To rank r goes r times the own number; rank 0 gets nothing.
            let own = world.rank();
            let exchange = |first: f32| {
                let parts = (0..3).map(|to| values(&vec![first + own as f32; to])).collect();
                world.exchange(parts, vec![own; 3]).unwrap()
            };
            let [one, two] = [exchange(1.0), exchange(10.0)];
            let found = [one, two].map(|exchange| {
                exchange.wait().unwrap().iter().map(|part| part.to_vec1::<f32>().unwrap()).collect::<Vec<_>>()
            });
            (own, found)
        }) {
            let (own, found) = tensors;
            let expected = |first: f32| (0..3).map(|from| vec![first + from as f32; own]).collect::<Vec<_>>();
            assert_eq!(found, [expected(1.0), expected(10.0)]);
        }
        let alone = World::default();
        assert_eq!(alone.exchange(vec![values(&[3.0])], vec![1]).unwrap().wait().unwrap().len(), 1);
        assert!(alone.exchange(vec![], vec![]).is_err());
    }

    #[test]
    fn every_rank_gets_the_values_of_all_in_order() {
        for size in 1..=4 {
            for gathered in on_each(size, DEFAULT_TIMEOUT, |world| {
                world.finish().unwrap();
                (world.gather_all(world.rank() * 10).unwrap(), world.from_first(|| Ok(world.rank())).unwrap())
            }) {
                assert_eq!(gathered, ((0..size).map(|rank| rank * 10).collect(), 0));
            }
        }
    }

    #[test]
    fn an_error_of_one_rank_is_one_of_all() {
        let results = on_each(3, DEFAULT_TIMEOUT, |world| {
            let own = if world.rank() == 1 { Err(Error::data("on purpose")) } else { Ok(world.rank()) };
            world.agree(own).unwrap_err().to_string()
        });
        assert!(results[1].starts_with("data") && results[1].contains("on purpose"), "{results:?}");
        assert!(results[0] == results[2] && results[0].contains("rank 1 failed: data"), "{results:?}");
        let results = on_each(3, DEFAULT_TIMEOUT, |world| {
            let error = || Err::<(), _>(Error::data("on purpose"));
            world.from_first(error).unwrap_err().to_string()
        });
        assert!(results[2].contains("rank 0 failed") && results[2].contains("on purpose"), "{results:?}");
    }

    #[test]
    fn a_failure_ends_the_waits_of_all_and_names_the_first() {
        let results = on_each(3, DEFAULT_TIMEOUT, |world| {
            let result = match world.rank() {
                2 => Err(Error::data("on purpose")),
                // Rank 1 waits for rank 0, which waits for the rank that failed.
                1 => receive(&world, 0, 7),
                _ => receive(&world, 2, 7),
            };
            let error = result.unwrap_err();
            world.fail(&error);
            error.to_string()
        });
        for waiting in &results[..2] {
            assert!(waiting.contains("rank 2 failed") && waiting.contains("on purpose"), "{results:?}");
            assert!(!waiting.contains("rank 0") && !waiting.contains("rank 1"), "{results:?}");
        }
    }

    #[test]
    fn a_silent_rank_is_named_also_by_those_who_wait_for_others() {
        let ended = std::sync::atomic::AtomicUsize::new(0);
        let results = on_each(3, Duration::from_millis(300), |world| {
            let result = match world.rank() {
                2 => {
                    while ended.load(std::sync::atomic::Ordering::Relaxed) < 2 {
                        std::thread::sleep(SLEEP);
                    }
                    return String::new();
                }
                1 => receive(&world, 0, 7),
                _ => receive(&world, 2, 7),
            };
            let error = result.unwrap_err();
            world.fail(&error);
            ended.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            error.to_string()
        });
        assert!(results[..2].iter().all(|error| error.contains("rank 2 has been silent")), "{results:?}");
    }

    #[test]
    fn ranks_that_are_gone_or_out_of_step_are_named() {
        let sends_three = |world: World| {
            let parts = vec![values(&[1.0; 3]), values(&[])];
            drop(world.exchange(parts, vec![0, 0]).unwrap());
            String::new()
        };
        let results = on_each(2, DEFAULT_TIMEOUT, |world| match world.rank() {
            0 => world.gather_all(1).unwrap_err().to_string(),
            _ => sends_three(world),
        });
        assert!(results[0].contains("rank 1 sent 3 values, expected a text"), "{results:?}");
        let results = on_each(2, DEFAULT_TIMEOUT, |world| match world.rank() {
            0 => receive(&world, 1, 4).unwrap_err().to_string(),
            _ => sends_three(world),
        });
        assert!(results[0].contains("rank 1 sent 3 values, expected 4 values"), "{results:?}");
        let results = on_each(2, DEFAULT_TIMEOUT, |world| match world.rank() {
            0 => receive(&world, 1, 3).unwrap_err().to_string(),
            _ => String::new(),
        });
        assert!(results[0].contains("rank 1 has ended"), "{results:?}");
    }
}
