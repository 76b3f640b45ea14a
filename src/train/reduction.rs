//! Summing of gradients over ranks, beside the backward pass.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::buckets::{BUCKET, Bucket, buckets, overwrite, packed};
use crate::distributed::{PendingExchange, World};
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
            let own = self.own_values(bucket, parameters)?;
            let counts = (0..self.world.size()).map(|rank| bucket.elements(rank)).collect();
            let values = self.world.exchange(vec![own; self.world.size()], counts)?.wait()?;
            self.world.others().try_for_each(|rank| overwrite_all(bucket, rank, &values[rank], parameters))?;
        }
        Ok(())
    }

    fn own_values(&self, bucket: &Bucket, parameters: &BTreeMap<String, Var>) -> Result<Tensor> {
        let pieces = bucket.of(self.world.rank()).iter();
        let with_values = pieces.map(|piece| Ok((piece, Some(parameter(parameters, &piece.name)?))));
        packed(self.world.exchange_device(), Vec::new(), &with_values.collect::<Result<Vec<_>>>()?)
    }
}

/// Overwrites the parameters of a bucket that a rank owns by their values.
fn overwrite_all(bucket: &Bucket, rank: usize, values: &Tensor, parameters: &BTreeMap<String, Var>) -> Result<()> {
    let mut start = 0;
    for piece in bucket.of(rank) {
        let own = values.narrow(0, start, piece.range.len())?;
        overwrite(parameter(parameters, &piece.name)?, &piece.range, &own)?;
        start += piece.range.len();
    }
    Ok(())
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
    /// Buckets under way, oldest first.
    open: VecDeque<PendingExchange>,
    /// Sums of the parameters that this rank owns, by name and first element of the piece.
    sums: BTreeMap<(String, usize), Sum>,
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
        let sums = self.sums;
        if sums.is_empty() {
            return Ok(Gradients::default());
        }
        let found = Tensor::cat(&sums.values().map(|sum| &sum.found).collect::<Vec<_>>(), 0)?.to_vec1::<f32>()?;
        let mut pieces: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for (((name, _), sum), found) in sums.into_iter().zip(found) {
            if found != 0.0 {
                pieces.entry(name).or_default().push(sum.values);
            }
        }
        let mut gradients = Gradients::default();
        for (name, pieces) in pieces {
            let var = parameter(parameters, &name)?;
            gradients.add(name, Tensor::cat(&pieces, 0)?.to_device(var.device())?.reshape(var.shape())?)?;
        }
        Ok(gradients)
    }

    /// Waits until every bucket is summed.
    fn complete(&mut self) -> Result<()> {
        self.ready.extend(self.buckets.iter().flat_map(Bucket::names).map(String::from));
        self.advance()?;
        while !self.open.is_empty() {
            let (world, before) = (self.world.clone(), self.progress());
            world.wait_for(self.awaited(), || {
                self.advance()?;
                Ok((self.progress() != before).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The first rank whose gradients the oldest bucket lacks.
    fn awaited(&self) -> Option<usize> {
        self.open.front()?.awaited()
    }

    /// What changes when something has left or come.
    fn progress(&self) -> (usize, usize, Option<usize>) {
        (self.begun, self.open.len(), self.awaited())
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
        let (size, own) = (self.world.size(), self.world.rank());
        let parts = (0..size).map(|rank| self.part_for(bucket, rank)).collect::<Result<_>>()?;
        let count = bucket.of(own).len() + bucket.elements(own);
        self.open.push_back(self.world.exchange(parts, vec![count; size])?);
        self.left.extend(bucket.names().map(String::from));
        self.begun += 1;
        Ok(())
    }

    /// The gradients in a bucket that a rank owns: for each piece 1 if there is a gradient, then the elements.
    fn part_for(&mut self, bucket: &Bucket, rank: usize) -> Result<Tensor> {
        let pieces = bucket.of(rank);
        let with_gradients = Vec::from_iter(pieces.iter().map(|piece| (piece, self.local.get(&piece.name))));
        let flags = with_gradients.iter().map(|(_, gradient)| f32::from(u8::from(gradient.is_some()))).collect();
        let part = packed(self.world.exchange_device(), flags, &with_gradients)?;
        for piece in pieces.iter().filter(|piece| piece.is_last()) {
            self.local.remove(&piece.name);
        }
        Ok(part)
    }

    /// Adds up the oldest buckets, as far as they have come.
    fn receive(&mut self) -> Result<()> {
        loop {
            let summed = self.begun - self.open.len();
            let Some(oldest) = self.open.front_mut() else { return Ok(()) };
            let Some(parts) = oldest.poll()? else { return Ok(()) };
            self.open.pop_front();
            self.add_up(summed, &parts)?;
        }
    }

    /// Adds up the gradients of a bucket in the order of ranks.
    fn add_up(&mut self, bucket: usize, parts: &[Tensor]) -> Result<()> {
        let buckets = Arc::clone(&self.buckets);
        let pieces = buckets.get(bucket).map_or(&[][..], |bucket| bucket.of(self.world.rank()));
        let (Some((first, others)), false) = (parts.split_first(), pieces.is_empty()) else { return Ok(()) };
        let sum = others.iter().try_fold(first.clone(), |sum, part| sum + part)?;
        let mut start = pieces.len();
        for (at, piece) in pieces.iter().enumerate() {
            let (values, found) = (sum.narrow(0, start, piece.range.len())?, sum.narrow(0, at, 1)?);
            start += piece.range.len();
            let key = (piece.name.clone(), piece.range.start);
            let sum = match self.sums.remove(&key) {
                Some(before) => Sum { values: (before.values + values)?, found: (before.found + found)? },
                None => Sum { values, found },
            };
            self.sums.insert(key, sum);
        }
        Ok(())
    }
}

/// Sum of the gradients of a piece over all ranks.
struct Sum {
    values: Tensor,
    /// The number of ranks that had a gradient, one element. It is read when all sums are there, as a GPU would be waited
    /// for.
    found: Tensor,
}
