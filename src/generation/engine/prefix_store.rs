//! The prefix cache over requests: chunks of prompts in a tree, each held once.

use std::collections::HashMap;
use std::sync::Arc;

use super::prompt::ChunkKey;

/// Name of a chunk in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(u64);

struct Node<C> {
    parent: Option<NodeId>,
    key: ChunkKey,
    chunk: Arc<C>,
    bytes: usize,
    children: usize,
    /// Requests under way that use the chunk, or one that follows it.
    users: usize,
    last_used: u64,
}

/// Chunks of prompts by their content and all content before it: a chunk's keys and values depend on both.
///
/// Chunks that no request uses are removed from the ends of the tree, least recently used first.
pub(super) struct PrefixStore<C> {
    nodes: HashMap<NodeId, Node<C>>,
    index: HashMap<(Option<NodeId>, ChunkKey), NodeId>,
    bytes: usize,
    bytes_in_use: usize,
    next_id: u64,
    clock: u64,
    evictions: u64,
}

impl<C> PrefixStore<C> {
    pub(super) fn new() -> Self {
        Self {
            nodes: HashMap::new(),
            index: HashMap::new(),
            bytes: 0,
            bytes_in_use: 0,
            next_id: 0,
            clock: 0,
            evictions: 0,
        }
    }

    /// Number of chunks.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of all chunks.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of chunks removed so far.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// The longest path of chunks with these keys from the root, first to last.
    pub(super) fn path<'k>(&self, keys: impl IntoIterator<Item = &'k ChunkKey>) -> Vec<(NodeId, Arc<C>)> {
        let mut path: Vec<(NodeId, Arc<C>)> = Vec::new();
        for key in keys {
            let parent = path.last().map(|(id, _)| *id);
            let found = self.index.get(&(parent, key.clone()));
            let Some((id, node)) = found.and_then(|id| Some((id, self.nodes.get(id)?))) else { break };
            path.push((*id, Arc::clone(&node.chunk)));
        }
        path
    }

    /// Adds a chunk after `parent` and returns its name. Of two chunks with the same key the first is kept.
    pub(super) fn insert(&mut self, parent: Option<NodeId>, key: ChunkKey, chunk: Arc<C>, bytes: usize) -> NodeId {
        if let Some(id) = self.index.get(&(parent, key.clone())) {
            return *id;
        }
        let id = NodeId(self.next_id);
        self.next_id += 1;
        self.clock += 1;
        self.bytes += bytes;
        if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            parent.children += 1;
        }
        self.index.insert((parent, key.clone()), id);
        self.nodes.insert(id, Node { parent, key, chunk, bytes, children: 0, users: 0, last_used: self.clock });
        id
    }

    /// Marks a chunk and all before it as used by one more request.
    pub(super) fn pin(&mut self, id: Option<NodeId>) {
        self.clock += 1;
        self.for_path(id, |node, clock, in_use| {
            node.last_used = clock;
            node.users += 1;
            if node.users == 1 {
                *in_use += node.bytes;
            }
        });
    }

    /// Takes one [`Self::pin`] back.
    pub(super) fn unpin(&mut self, id: Option<NodeId>) {
        self.for_path(id, |node, _, in_use| {
            node.users = node.users.saturating_sub(1);
            if node.users == 0 {
                *in_use -= node.bytes;
            }
        });
    }

    fn for_path(&mut self, mut id: Option<NodeId>, mut f: impl FnMut(&mut Node<C>, u64, &mut usize)) {
        while let Some(node) = id.and_then(|id| self.nodes.get_mut(&id)) {
            f(node, self.clock, &mut self.bytes_in_use);
            id = node.parent;
        }
    }

    /// Removes unused chunks until all take at most `limit` bytes, and returns whether that is possible; if not,
    /// nothing is removed.
    pub(super) fn shrink_to(&mut self, limit: usize) -> bool {
        if self.bytes_in_use > limit {
            return false;
        }
        while self.bytes > limit {
            self.evict();
        }
        true
    }

    /// Removes the least recently used chunk that no request uses and that no other follows.
    fn evict(&mut self) {
        let unused = self.nodes.iter().filter(|(_, node)| node.users == 0 && node.children == 0);
        let Some(id) = unused.min_by_key(|(_, node)| node.last_used).map(|(id, _)| *id) else { return };
        let Some(node) = self.nodes.remove(&id) else { return };
        self.index.remove(&(node.parent, node.key));
        if let Some(parent) = node.parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            parent.children -= 1;
        }
        self.bytes -= node.bytes;
        self.evictions += 1;
    }
}
