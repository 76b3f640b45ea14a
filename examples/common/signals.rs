//! Handling of SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal): the first signal stops a training run so that it
//! can be resumed, a second one ends the process.
#![allow(dead_code, reason = "each example compiles this module and uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use haplovl::generation::CancelToken;
use haplovl::train::metrics::Record;
use haplovl::train::{RunStart, StepReport, TrainObserver};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Last of these signals that the process received.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    any: Arc<AtomicBool>,
    number: Arc<AtomicUsize>,
}

impl Signals {
    /// Registers handlers: the first signal is recorded, and a second one ends the process at once.
    pub fn register(&self) -> std::io::Result<()> {
        for signal in [Some(SIGINT), Some(SIGTERM), hangup()].into_iter().flatten() {
            // The order matters: the shutdown handler of the first signal must see the flag unset.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&self.any))?;
            flag::register(signal, Arc::clone(&self.any))?;
            flag::register_usize(signal, Arc::clone(&self.number), signal as usize)?;
        }
        Ok(())
    }

    /// Exit code after a signal, 128 plus its number: 130, 143 or 129; `None` if there was no signal.
    pub fn exit_code(&self) -> Option<u8> {
        u8::try_from(self.number.load(Ordering::Relaxed)).ok().filter(|number| *number > 0).map(|number| 128 + number)
    }

    /// An observer that stops a run after the step in which a signal was received.
    pub fn stop(&self, run: CancelToken) -> Box<dyn TrainObserver> {
        Box::new(StopOnSignal { signals: self.clone(), run })
    }
}

/// SIGHUP, unless it is ignored, as `nohup` asks for.
#[cfg(unix)]
fn hangup() -> Option<i32> {
    let signal = signal_hook::consts::SIGHUP;
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, the present one is written to `found`, of which all zeros are a valid value.
    let found = unsafe {
        libc::sigaction(signal, std::ptr::null(), found.as_mut_ptr());
        found.assume_init()
    };
    (found.sa_sigaction != libc::SIG_IGN).then_some(signal)
}

#[cfg(not(unix))]
fn hangup() -> Option<i32> {
    None
}

struct StopOnSignal {
    signals: Signals,
    run: CancelToken,
}

impl StopOnSignal {
    fn check(&self) {
        if self.signals.exit_code().is_some() {
            self.run.cancel();
        }
    }
}

impl TrainObserver for StopOnSignal {
    fn on_start(&mut self, _: &RunStart<'_>) -> haplovl::Result<()> {
        self.check();
        Ok(())
    }

    fn on_step(&mut self, _: &StepReport, _: &Record) -> haplovl::Result<()> {
        self.check();
        Ok(())
    }
}
