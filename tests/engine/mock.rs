//! A model whose logits are a hash of the whole content of a sequence, so that any wrong cache content shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use candle_core::{Device, Tensor};
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence, Visual};
use haplovl::config::{GenerationConfig, HaploVlConfig};
use haplovl::generation::{Answer, EngineConfig, Handle, Request, Scheduler, ServedModel, SubmitError};
use haplovl::patch_grid::Size;
use haplovl::{Error, Result};

pub const EOS: u32 = 90;
/// In a prompt, as are the next three; none is ever generated. The logits become NaN after the first token.
pub const NAN: u32 = 200;
/// The prefill fails.
pub const FAIL: u32 = 201;
/// The prefill panics.
pub const PANIC: u32 = 202;
/// The first decode step fails for all its sequences.
pub const FAIL_STEP: u32 = 203;
pub const BYTES_PER_POSITION: usize = 10;

/// What the model did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Item,
    Decode(usize),
}

#[derive(Default)]
pub struct Memory {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Memory {
    fn take(&self, positions: usize) {
        let bytes = positions * BYTES_PER_POSITION;
        self.peak.fetch_max(self.now.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
    }

    fn give(&self, positions: usize) {
        self.now.fetch_sub(positions * BYTES_PER_POSITION, Ordering::SeqCst);
    }

    pub fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }
}

pub struct Mock {
    config: HaploVlConfig,
    pub memory: Arc<Memory>,
    /// How often each chunk was prefilled, by a hash of its content and of all before it.
    pub prefilled: Mutex<BTreeMap<u64, usize>>,
    pub work: Mutex<Vec<Work>>,
    pub item_time: Duration,
    pub step_time: Duration,
    closed: Mutex<bool>,
    opened: Condvar,
    pub reached: AtomicBool,
}

impl Mock {
    pub fn new() -> Self {
        Self {
            config: HaploVlConfig { max_position_embeddings: 2048, ..HaploVlConfig::tiny() },
            memory: Arc::default(),
            prefilled: Mutex::default(),
            work: Mutex::default(),
            item_time: Duration::ZERO,
            step_time: Duration::ZERO,
            closed: Mutex::new(false),
            opened: Condvar::new(),
            reached: AtomicBool::new(false),
        }
    }

    /// Has the model wait in its next work item or decode step until [`Self::open`].
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
        self.reached.store(false, Ordering::SeqCst);
    }

    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    /// Waits until the model waits.
    pub fn wait_until_reached(&self) {
        while !self.reached.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn pass_gate(&self) {
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            self.reached.store(true, Ordering::SeqCst);
            closed = self.opened.wait(closed).unwrap();
        }
    }

    /// Logits of a content.
    pub fn logits(&self, content: &[u64]) -> Vec<f32> {
        if content.contains(&u64::from(NAN)) && content.last() != Some(&u64::from(NAN)) {
            return vec![f32::NAN; self.config.vocab_size];
        }
        let seed = content.iter().fold(7, |hash, item| mix(hash ^ item));
        (0..self.config.vocab_size as u64).map(|id| (mix(seed ^ id) >> 40) as f32 / (1 << 21) as f32).collect()
    }
}

pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

pub struct Chunk {
    content: Vec<u64>,
    memory: Arc<Memory>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.memory.give(self.content.len());
    }
}

pub struct Cached {
    chunks: Vec<Arc<Chunk>>,
    tail: Vec<u64>,
    capacity: usize,
    memory: Arc<Memory>,
}

impl Cached {
    fn content(&self) -> Vec<u64> {
        self.chunks.iter().flat_map(|chunk| &chunk.content).chain(&self.tail).copied().collect()
    }

    fn append(&mut self, content: &[u64]) -> Result<()> {
        self.memory.take(content.len());
        self.tail.extend(content);
        if self.content().len() > self.capacity {
            return Err(Error::generation("the mock's cache is full"));
        }
        Ok(())
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        self.memory.give(self.tail.len());
    }
}

/// Ids of a prompt, with the pixels of its images in their positions.
pub fn content(batch: &MultimodalBatch) -> Vec<u64> {
    let ids = batch.input_ids.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let mut content = Vec::from_iter(ids.into_iter().map(u64::from));
    let spans = batch.layout.rows[0][0].visuals.iter();
    for (span, visual) in spans.zip(&batch.visuals) {
        let pixels = visual.pixel_values().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let hash = pixels.iter().fold(0, |hash, pixel| mix(hash ^ u64::from(pixel.to_bits())));
        content[span.clone()].iter_mut().for_each(|item| *item ^= hash << 8);
    }
    content
}

impl ServedModel for Mock {
    type Sequence = Cached;
    type Chunk = Chunk;
    /// Content, and work items left.
    type Prefill = (Vec<u64>, usize);

    fn config(&self) -> &HaploVlConfig {
        &self.config
    }

    fn bytes_per_position(&self) -> usize {
        BYTES_PER_POSITION
    }

    fn sequence(&self, capacity: usize) -> Result<Cached> {
        Ok(Cached { chunks: vec![], tail: vec![], capacity, memory: Arc::clone(&self.memory) })
    }

    fn push_chunk(&self, sequence: &mut Cached, chunk: &Arc<Chunk>) -> Result<()> {
        assert!(sequence.tail.is_empty(), "a chunk after a tail");
        sequence.chunks.push(Arc::clone(chunk));
        Ok(())
    }

    fn start_prefill(&self, batch: &MultimodalBatch, sequence: &Cached) -> Result<(Vec<u64>, usize)> {
        assert!(sequence.tail.is_empty(), "a chunk after a tail");
        Ok((content(batch), 3))
    }

    fn advance(&self, (new, items): &mut (Vec<u64>, usize), sequence: &mut Cached) -> Result<Option<Vec<f32>>> {
        self.pass_gate();
        std::thread::sleep(self.item_time);
        self.work.lock().unwrap().push(Work::Item);
        assert!(!new.contains(&u64::from(PANIC)), "on purpose");
        if new.contains(&u64::from(FAIL)) {
            return Err(Error::generation("the prefill fails on purpose"));
        }
        *items -= 1;
        if *items > 0 {
            return Ok(None);
        }
        sequence.append(new)?;
        let content = sequence.content();
        let hash = content.iter().fold(0, |hash, item| mix(hash ^ item));
        *self.prefilled.lock().unwrap().entry(hash).or_default() += 1;
        Ok(Some(self.logits(&content)))
    }

    fn freeze(&self, sequence: &mut Cached) -> Result<Arc<Chunk>> {
        let content = std::mem::take(&mut sequence.tail);
        let chunk = Arc::new(Chunk { content, memory: Arc::clone(&self.memory) });
        sequence.chunks.push(Arc::clone(&chunk));
        Ok(chunk)
    }

    fn chunk_bytes(&self, chunk: &Chunk) -> usize {
        chunk.content.len() * BYTES_PER_POSITION
    }

    fn decode(&self, ids: &[u32], sequences: &mut [&mut Cached]) -> Result<Vec<Vec<f32>>> {
        self.pass_gate();
        std::thread::sleep(self.step_time);
        self.work.lock().unwrap().push(Work::Decode(ids.len()));
        assert_eq!(ids.len(), sequences.len());
        let mut logits = vec![];
        for (id, sequence) in ids.iter().zip(sequences) {
            if sequence.content().contains(&u64::from(FAIL_STEP)) {
                return Err(Error::generation("the step fails on purpose"));
            }
            sequence.append(&[u64::from(*id)])?;
            logits.push(self.logits(&sequence.content()));
        }
        Ok(logits)
    }
}

/// An engine over a mock.
pub struct Fixture {
    pub model: Arc<Mock>,
    pub scheduler: Scheduler,
}

/// Text of ids: a letter for each below 80, nothing for others.
pub fn letters(ids: &[u32]) -> Result<String> {
    Ok(ids.iter().filter(|&&id| id < 80).map(|&id| char::from(b'a' + (id % 26) as u8)).collect())
}

impl Fixture {
    pub fn new(config: EngineConfig) -> Self {
        Self::over(Mock::new(), config)
    }

    pub fn over(model: Mock, config: EngineConfig) -> Self {
        let model = Arc::new(model);
        let scheduler = Scheduler::start(Arc::clone(&model), letters, config).unwrap();
        Self { model, scheduler }
    }

    pub fn submit(&self, request: Request<Prompt>) -> Result<Handle, SubmitError> {
        self.scheduler.submit(request, |prompt| Ok(prompt.batch()))
    }

    pub fn answer(&self, request: Request<Prompt>) -> Result<Answer> {
        self.submit(request).unwrap().answer()
    }

    /// Prompt tokens that the prefix cache had.
    pub fn cached(&self, prompt: &Prompt) -> usize {
        self.answer(Request::new(prompt.clone(), greedy(1))).unwrap().timings.cached_tokens
    }
}

/// Settings with room for everything.
pub fn roomy() -> EngineConfig {
    EngineConfig::default().with_kv_cache_bytes(1 << 24)
}

pub fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens: Some(max_new_tokens), eos_token_id: vec![EOS], ..Default::default() }
}

/// Greedy, without an end before the limit.
pub fn endless(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { eos_token_id: vec![], ..greedy(max_new_tokens) }
}

/// Ids, and the brightness of an image before them.
#[derive(Debug, Clone)]
pub struct Prompt {
    pub image: Option<u8>,
    pub ids: Vec<u32>,
}

impl Prompt {
    pub fn text(ids: &[u32]) -> Self {
        Self { image: None, ids: ids.to_vec() }
    }

    /// `len` ids that depend on `seed`.
    pub fn long(seed: u64, len: usize) -> Self {
        Self { image: None, ids: (0..len as u64).map(|i| (mix(seed ^ i << 8) % 80) as u32).collect() }
    }

    pub fn with_image(image: u8, ids: &[u32]) -> Self {
        Self { image: Some(image), ids: ids.to_vec() }
    }

    pub fn batch(&self) -> MultimodalBatch {
        let config = Mock::new().config;
        let visual = self.image.map(|brightness| {
            let pixel_values = Tensor::full(f32::from(brightness), (1, 3, 28, 28), &Device::Cpu).unwrap();
            Visual::Image { pixel_values, size: Size { width: 28, height: 28 } }
        });
        let patches = visual.iter().flat_map(|v| vec![config.image_token_index; v.tokens(&config.vision).unwrap()]);
        let input_ids = patches.chain(self.ids.iter().copied()).collect();
        let sequence = Sequence { input_ids, labels: None, visuals: visual.into_iter().collect() };
        MultimodalBatch::new(&[sequence], BatchSpec::new(&config), PaddingSide::Left, &Device::Cpu).unwrap()
    }
}
