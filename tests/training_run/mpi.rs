//! Runs on several processes that MPI connects: each test starts this program again under `mpirun`.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use haplovl::distributed::World;

use super::ranks::{difference, shared};
use super::*;

/// Environment variables of the processes: the recipe, what a rank does wrong, and the seconds it may be silent.
const RECIPE: &str = "HAPLOVL_TEST_MPI_RECIPE";
const FAULT: &str = "HAPLOVL_TEST_MPI_FAULT";
const TIMEOUT: &str = "HAPLOVL_TEST_MPI_TIMEOUT";

/// Observer that misbehaves after step 3, as the environment says.
struct Fault;

impl TrainObserver for Fault {
    fn on_step(&mut self, step: &StepReport, _: &Record) -> haplovl::Result<()> {
        match std::env::var(FAULT).as_deref() {
            Ok("fails") if step.step == 3 => Err(haplovl::Error::training("on purpose")),
            Ok("panics") if step.step == 3 => panic!("on purpose"),
            Ok("is killed") if step.step == 3 => {
                let own = std::process::id().to_string();
                Command::new("kill").args(["-KILL", &own]).status().unwrap();
                Ok(())
            }
            Ok("hangs") if step.step == 3 => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            _ => Ok(()),
        }
    }
}

/// What every process of `mpirun` does; nothing without it.
#[test]
fn a_rank_of_mpi_trains() {
    let Some(recipe) = std::env::var_os(RECIPE) else { return };
    let timeout = std::env::var(TIMEOUT).map_or(600, |seconds| seconds.parse().unwrap());
    let world = World::from_environment(Duration::from_secs(timeout)).unwrap();
    let recipe = Recipe::read(recipe, &[]).unwrap();
    let mut run = Run::in_world(recipe, Device::Cpu, world.clone()).unwrap().with_default_observers();
    if world.rank() == world.size() - 1 {
        run = run.with_observer(Box::new(Fault));
    }
    if let Err(error) = run.train(true) {
        eprintln!("rank {}: {error}", world.rank());
        world.abort();
    }
}

/// Trains a recipe on `ranks` processes, the last of which may have a fault.
fn mpirun(folder: &Path, recipe: &Recipe, ranks: usize, fault: &str, timeout: u64) -> Output {
    let path = folder.join("mpi.toml");
    std::fs::write(&path, toml::to_string(recipe).unwrap()).unwrap();
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]);
    mpirun.arg(std::env::current_exe().unwrap()).args(["--exact", "mpi::a_rank_of_mpi_trains", "--nocapture"]);
    mpirun.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    mpirun.env(RECIPE, path).env(FAULT, fault).env(TIMEOUT, timeout.to_string()).output().unwrap()
}

fn train_over_mpi(folder: &Path, recipe: &Recipe, ranks: usize) -> PathBuf {
    let output = mpirun(folder, recipe, ranks, "", 600);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    recipe.output.join("export")
}

#[test]
fn processes_train_as_one_does_and_twice_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, micro_batches| {
        let mut recipe = shared(folder.path(), name, r#"{ kind = "tune" }"#, micro_batches);
        recipe.optimizer.ema_decay = Some(0.5);
        recipe
    };
    let one = train(run("one", 4), false).unwrap();
    let [two, again] = ["two", "again"].map(|name| train_over_mpi(folder.path(), &run(name, 2), 2));
    assert_eq!(tensors(&two), tensors(&again));
    let four = train_over_mpi(folder.path(), &run("four", 1), 4);
    for other in [&two, &four] {
        let difference = difference(&one, other);
        assert!(difference < 2e-5, "{difference}");
    }
}

#[test]
fn a_process_with_a_fault_ends_all_and_the_run_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |name: &str| shared(folder.path(), name, r#"{ kind = "tune" }"#, 1);
    let whole = train_over_mpi(folder.path(), &tune("whole"), 2);
    for (fault, said) in [
        ("fails", "rank 1: training: on purpose"),
        ("panics", "panicked"),
        ("is killed", "rank 1"),
        ("hangs", "rank 1 has been silent"),
    ] {
        let recipe = tune(&fault.replace(' ', "-"));
        let began = Instant::now();
        let output = mpirun(folder.path(), &recipe, 2, fault, 10);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(said), "{fault}: {text}");
        assert!(began.elapsed() < Duration::from_secs(60), "{fault} took {:?}", began.elapsed());
        assert_eq!(tensors(&whole), tensors(&train_over_mpi(folder.path(), &recipe, 2)), "{fault}");
    }
}
