//! Summing of gradients over ranks, beside the backward pass.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::buckets::{BUCKET, Bucket, append, buckets, overwrite};
use crate::distributed::World;
use crate::optim::{Gradients, Shards};
use crate::{Error, Result};

/// Buckets whose sums are awaited at a time, at most, which bounds the memory of messages.
pub(super) const IN_FLIGHT: usize = 4;

/// The ranks of a run, the parameters that each owns, and the buckets in which they exchange them.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    pub world: World,
    pub shards: Shards,
    buckets: Arc<Vec<Bucket>>,
    /// Whether the buckets follow the order in which a backward pass finds gradients.
    is_ordered: bool,
}

impl Exchange {
    /// Deals parameters to the ranks of `world`.
    pub fn new(world: World, parameters: &BTreeMap<String, Var>) -> Self {
        let mut names: Vec<&String> = parameters.keys().collect();
        // About the order of a backward pass, from the last layer to the first, until a step has shown it.
        names.sort_by_cached_key(|name| Reverse(layer_order(name)));
        let sizes = sizes(parameters, names);
        let shards = Shards::new(sizes.iter().cloned(), world.size());
        let buckets = Arc::new(buckets(&sizes, &shards, BUCKET));
        Self { world, shards, buckets, is_ordered: false }
    }

    /// Whether this rank owns a parameter.
    pub fn owns(&self, name: &str) -> bool {
        self.shards.owner(name) == self.world.rank()
    }

    /// Whether there are other ranks.
    pub fn is_shared(&self) -> bool {
        self.world.size() > 1
    }

    /// Begins a sum of gradients, to which this rank has `local` so far.
    pub fn begin(&self, local: Gradients) -> Reduction {
        Reduction {
            world: self.world.clone(),
            buckets: Arc::clone(&self.buckets),
            local,
            late: Gradients::default(),
            found: Vec::new(),
            ready: BTreeSet::new(),
            left: BTreeSet::new(),
            begun: 0,
            open: VecDeque::new(),
            sums: BTreeMap::new(),
            error: None,
        }
    }

    /// Puts the buckets in the order in which rank 0 has found gradients, once: parameters that came several times or not
    /// at all come last, when the backward pass is over.
    pub fn set_order(&mut self, found: &[String], parameters: &BTreeMap<String, Var>) -> Result<()> {
        if self.is_ordered || !self.is_shared() {
            return Ok(());
        }
        let times = |name: &String| found.iter().filter(|other| *other == name).count();
        let order = self.world.from_first(|| {
            let (once, others): (Vec<_>, Vec<_>) = parameters.keys().partition(|name| times(name) == 1);
            let first = found.iter().filter(|name| once.contains(name));
            Ok(first.chain(others).cloned().collect::<Vec<String>>())
        })?;
        self.buckets = Arc::new(buckets(&sizes(parameters, &order), &self.shards, BUCKET));
        self.is_ordered = true;
        Ok(())
    }

    /// Gives every rank the parameters that the others own.
    pub fn gather(&self, parameters: &BTreeMap<String, Var>) -> Result<()> {
        if !self.is_shared() {
            return Ok(());
        }
        for bucket in self.buckets.iter() {
            self.send_own(bucket, parameters)?;
            self.world.others().try_for_each(|rank| self.receive_from(rank, bucket, parameters))?;
        }
        Ok(())
    }

    fn send_own(&self, bucket: &Bucket, parameters: &BTreeMap<String, Var>) -> Result<()> {
        let own = self.world.rank();
        let mut values = Vec::with_capacity(bucket.elements(own));
        for piece in bucket.of(own) {
            append(&mut values, parameter(parameters, &piece.name)?, &piece.range)?;
        }
        let values = Arc::new(values);
        let is_empty = values.is_empty();
        let others = self.world.others().filter(|_| !is_empty);
        others.into_iter().try_for_each(|rank| self.world.send_values(rank, Arc::clone(&values)))
    }

    fn receive_from(&self, rank: usize, bucket: &Bucket, parameters: &BTreeMap<String, Var>) -> Result<()> {
        let count = bucket.elements(rank);
        if count == 0 {
            return Ok(());
        }
        let values = self.world.receive_values(rank, count)?;
        let mut rest = values.as_slice();
        for piece in bucket.of(rank) {
            let (own, others) = rest.split_at(piece.range.len());
            overwrite(parameter(parameters, &piece.name)?, &piece.range, own)?;
            rest = others;
        }
        Ok(())
    }
}

/// Key that sorts names by their parts, with numbers by value.
fn layer_order(name: &str) -> Vec<(usize, String)> {
    name.split('.').map(|part| (part.parse().unwrap_or(usize::MAX), part.to_string())).collect()
}

fn sizes<'a>(parameters: &BTreeMap<String, Var>, names: impl IntoIterator<Item = &'a String>) -> Vec<(String, usize)> {
    let size = |name: &String| parameters.get(name).map_or(0, |var| var.elem_count());
    names.into_iter().map(|name| (name.clone(), size(name))).collect()
}

fn parameter<'a>(parameters: &'a BTreeMap<String, Var>, name: &str) -> Result<&'a Tensor> {
    let var = parameters.get(name).map(Var::as_tensor);
    var.ok_or_else(|| Error::training(format!("there is no parameter `{name}` to exchange; this is a bug")))
}

/// A sum of gradients over all ranks that goes on beside the backward pass.
///
/// Each bucket leaves when all its gradients are there, in the same order on all ranks: each owner gets the others'
/// gradients of its parameters, and adds them up in the order of ranks.
pub(super) struct Reduction {
    world: World,
    buckets: Arc<Vec<Bucket>>,
    /// Gradients that have not left yet.
    local: Gradients,
    /// Gradients of parameters whose bucket has left already.
    late: Gradients,
    /// Names of the gradients in the order in which they came.
    found: Vec<String>,
    ready: BTreeSet<String>,
    /// Parameters of which at least a part has left.
    left: BTreeSet<String>,
    /// Number of buckets that have left.
    begun: usize,
    /// Gradients of the parameters that this rank owns, bucket by bucket and rank by rank, as far as they have come.
    open: VecDeque<Vec<Option<Arc<Vec<f32>>>>>,
    /// Sums of the parameters that this rank owns, and whether any rank had a gradient.
    sums: BTreeMap<String, (Vec<f32>, bool)>,
    error: Option<Error>,
}

impl Reduction {
    /// Takes a gradient of the last micro-batch. After an error, which [`Self::finish`] returns, it does nothing.
    pub fn deliver(&mut self, name: &str, gradient: Tensor) {
        if self.error.is_none() {
            self.error = self.take(name, gradient).err();
        }
    }

    /// Names of the gradients in the order in which they came.
    pub fn found(&self) -> &[String] {
        &self.found
    }

    fn take(&mut self, name: &str, gradient: Tensor) -> Result<()> {
        self.found.push(name.into());
        if self.left.contains(name) {
            return self.late.add(name.into(), gradient);
        }
        self.local.add(name.into(), gradient)?;
        self.ready.insert(name.into());
        self.advance()
    }

    /// The sums over all ranks, of the parameters that this rank owns: of those for which any rank has a gradient.
    ///
    /// # Errors
    /// If a rank has failed, is gone or is silent.
    pub fn finish(mut self, parameters: &BTreeMap<String, Var>) -> Result<Gradients> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.complete()?;
        // A parameter that is used several times came again after it had left, on some rank.
        while self.world.any(!self.late.is_empty())? {
            (self.local, self.begun) = (std::mem::take(&mut self.late), 0);
            self.complete()?;
        }
        let mut gradients = Gradients::default();
        for (name, (values, is_found)) in self.sums {
            let var = parameter(parameters, &name)?;
            if is_found {
                gradients.add(name, Tensor::from_vec(values, var.shape(), var.device())?)?;
            }
        }
        Ok(gradients)
    }

    /// Waits until every bucket is summed.
    fn complete(&mut self) -> Result<()> {
        self.ready.extend(self.buckets.iter().flat_map(Bucket::names).map(String::from));
        self.advance()?;
        while let Some(rank) = self.awaited() {
            let world = self.world.clone();
            world.wait_for(rank, || {
                self.advance()?;
                Ok((self.awaited() != Some(rank)).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The first rank whose gradients the oldest bucket lacks.
    fn awaited(&self) -> Option<usize> {
        self.open.front()?.iter().position(Option::is_none)
    }

    /// Sends what is ready, and adds up what has come.
    fn advance(&mut self) -> Result<()> {
        loop {
            self.receive()?;
            let is_ready = |bucket: &Bucket| bucket.names().all(|name| self.ready.contains(name));
            if self.open.len() >= IN_FLIGHT || !self.buckets.get(self.begun).is_some_and(is_ready) {
                return Ok(());
            }
            self.send()?;
        }
    }

    /// Sends the next bucket to the owners of its parameters.
    fn send(&mut self) -> Result<()> {
        let buckets = Arc::clone(&self.buckets);
        let Some(bucket) = buckets.get(self.begun) else { return Ok(()) };
        let mut parts = Vec::with_capacity(self.world.size());
        for rank in 0..self.world.size() {
            let values = Arc::new(self.packed(bucket, rank)?);
            let is_own = rank == self.world.rank();
            parts.push(is_own.then(|| Arc::clone(&values)));
            if !is_own && !values.is_empty() {
                self.world.send_values(rank, values)?;
            }
        }
        self.left.extend(bucket.names().map(String::from));
        self.begun += 1;
        self.open.push_back(parts);
        Ok(())
    }

    /// The gradients in a bucket that a rank owns: for each piece 1 if there is a gradient, then the elements.
    fn packed(&mut self, bucket: &Bucket, rank: usize) -> Result<Vec<f32>> {
        let pieces = bucket.of(rank);
        let mut values = Vec::with_capacity(pieces.len() + bucket.elements(rank));
        values.extend(pieces.iter().map(|piece| f32::from(u8::from(self.local.get(&piece.name).is_some()))));
        for piece in pieces {
            match self.local.get(&piece.name) {
                Some(gradient) => append(&mut values, gradient, &piece.range)?,
                None => values.resize(values.len() + piece.range.len(), 0.0),
            }
            if piece.is_last() {
                self.local.remove(&piece.name);
            }
        }
        Ok(values)
    }

    /// Receives gradients of the oldest bucket, and adds them up when they are complete.
    fn receive(&mut self) -> Result<()> {
        let own = self.world.rank();
        loop {
            let summed = self.begun - self.open.len();
            let Some(parts) = self.open.front_mut() else { return Ok(()) };
            let Some(bucket) = self.buckets.get(summed) else { return Ok(()) };
            let count = bucket.of(own).len() + bucket.elements(own);
            for rank in self.world.others() {
                if parts[rank].is_none() {
                    parts[rank] =
                        if count == 0 { Some(Arc::default()) } else { self.world.try_receive_values(rank, count)? };
                }
            }
            let Some(parts) = parts.iter().cloned().collect::<Option<Vec<_>>>() else { return Ok(()) };
            self.open.pop_front();
            self.add_up(summed, &parts);
        }
    }

    /// Adds up the gradients of a bucket in the order of ranks.
    fn add_up(&mut self, bucket: usize, parts: &[Arc<Vec<f32>>]) {
        let buckets = Arc::clone(&self.buckets);
        let Some(bucket) = buckets.get(bucket) else { return };
        let pieces = bucket.of(self.world.rank());
        let mut start = pieces.len();
        for (at, piece) in pieces.iter().enumerate() {
            let end = start + piece.range.len();
            let sum = self.sums.entry(piece.name.clone());
            let (sum, is_found) = sum.or_insert_with(|| (vec![0.0; piece.elements], false));
            *is_found |= parts.iter().any(|part| part[at] != 0.0);
            for part in parts {
                sum[piece.range.clone()].iter_mut().zip(&part[start..end]).for_each(|(sum, x)| *sum += x);
            }
            start = end;
        }
    }
}
