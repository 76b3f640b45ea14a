//! The unpickler: a stack machine that builds values and runs nothing.
//!
//! It knows the opcodes that `torch.save` has written since the first versions of PyTorch. A program may only refer to
//! the objects of [`Global`]; calls of them are interpreted here. Every limit is on what a program makes, so that its
//! length bounds time and memory.

use super::globals::Global;
use super::reader::{Parsed, Reader, text};
use super::rebuild;
use super::value::{Id, Value, Values};

/// Most values of a program; a checkpoint has some twenty a tensor.
const MAX_VALUES: usize = 1 << 20;
/// Most opcodes of a program.
const MAX_STEPS: usize = 1 << 23;
/// Highest memo index, which is the number of memorised values in real programs.
const MAX_MEMO: u32 = MAX_VALUES as u32;

/// Values of a program that ran to its end.
#[derive(Debug)]
pub(super) struct Unpickled<'a> {
    pub(super) values: Values<'a>,
    /// What the program returns.
    pub(super) root: Id,
    /// Position behind the program.
    pub(super) end: usize,
}

/// Runs the pickle program that begins at `position` of `bytes`.
pub(super) fn run(bytes: &[u8], position: usize) -> Parsed<Unpickled<'_>> {
    let mut machine = Machine::new(Reader::new(bytes, position));
    for _ in 0..MAX_STEPS {
        let code = machine.reader.u8()?;
        if code == b'.' {
            let root = machine.pop()?;
            return Ok(Unpickled { values: machine.values, root, end: machine.reader.position });
        }
        machine.step(code)?;
    }
    Err(format!("has more than {MAX_STEPS} opcodes: it is no file of tensors"))
}

struct Machine<'a> {
    reader: Reader<'a>,
    values: Values<'a>,
    stack: Vec<Id>,
    /// Lengths of the stack at each mark.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
    /// Items that calls have copied.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn new(reader: Reader<'a>) -> Self {
        // The first value is `None`, which all uses share.
        let values = Values(vec![Value::None]);
        let (stack, marks, memo) = (Vec::new(), Vec::new(), Vec::new());
        Self { reader, values, stack, marks, memo, copied: 0 }
    }

    fn step(&mut self, code: u8) -> Parsed<()> {
        match code {
            // Protocol and frame length.
            0x80 => self.reader.take(1).map(drop),
            0x95 => self.reader.take(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'q' | b'r' | 0x94 => self.put(code),
            b'h' | b'j' => self.get(code),
            b'c' | 0x93 | b'i' => self.global(code),
            b'Q' => self.persistent(),
            b'R' | 0x81 => self.call(),
            // The attributes of an object; those of dictionaries and parameters hold no tensors.
            b'b' => self.pop().map(drop),
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'}' | b'd' | 0x8f | 0x91 => self.container(code),
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(code),
            _ => {
                let value = self.scalar(code)?;
                self.push(value)
            }
        }
    }

    /// Numbers, texts and constants.
    fn scalar(&mut self, code: u8) -> Parsed<Value<'a>> {
        let reader = &mut self.reader;
        Ok(match code {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(reader.u8()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(reader.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(reader.array()?).into()),
            0x8a => long(reader.sized::<1>()?),
            0x8b => long(reader.sized::<4>()?),
            b'G' => {
                reader.take(8)?;
                Value::Opaque
            }
            b'X' | b'T' => Value::Text(text(reader.sized::<4>()?)?),
            0x8c | b'U' => Value::Text(text(reader.sized::<1>()?)?),
            0x8d => Value::Text(text(reader.sized::<8>()?)?),
            b'C' => opaque(reader.sized::<1>()?),
            b'B' => opaque(reader.sized::<4>()?),
            0x8e | 0x96 => opaque(reader.sized::<8>()?),
            other => {
                return Err(format!(
                    "has the opcode {other:#04x} at byte {}, which torch.save does not write: the file is damaged, or \
                     no file of tensors",
                    self.reader.position - 1
                ));
            }
        })
    }

    fn container(&mut self, code: u8) -> Parsed<()> {
        let value = match code {
            b')' => Value::Tuple(Vec::new()),
            b't' => Value::Tuple(self.pop_mark()?),
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(code - 0x84)).ok_or_else(empty)?;
                self.above_mark(start)?;
                Value::Tuple(self.stack.split_off(start))
            }
            b']' => Value::List(Vec::new()),
            b'l' => Value::List(self.pop_mark()?),
            b'}' => Value::Dict(Vec::new()),
            b'd' => Value::Dict(pairs(self.pop_mark()?)?),
            0x91 => {
                self.pop_mark()?;
                Value::Opaque
            }
            _ => Value::Opaque,
        };
        self.push(value)
    }

    /// Adds items to the list or dictionary below them.
    fn fill(&mut self, code: u8) -> Parsed<()> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        match (code, self.values.0.get_mut(target as usize)) {
            (b'a' | b'e', Some(Value::List(list))) => list.extend(items),
            (b's' | b'u', Some(Value::Dict(entries))) => entries.extend(pairs(items)?),
            (_, Some(Value::Opaque)) => {}
            _ => return Err("adds items to what is no list or dictionary: the file is damaged".into()),
        }
        Ok(())
    }

    fn global(&mut self, code: u8) -> Parsed<()> {
        let (module, name) = if code == 0x93 {
            let (name, module) = (self.pop()?, self.pop()?);
            let names = self.values.text(module).zip(self.values.text(name));
            names.ok_or("names an object by what is no text: the file is damaged")?
        } else {
            (self.reader.line()?, self.reader.line()?)
        };
        match Global::find(module, name).filter(|_| code != b'i') {
            Some(global) => self.push(Value::Global(global)),
            None => Err(format!(
                "refers to the Python object `{module}.{name}`, which no tensor needs; nothing of the file was run: get \
                 a state_dict or safetensors from a source you trust"
            )),
        }
    }

    fn persistent(&mut self) -> Parsed<()> {
        let id = self.pop()?;
        let storage = rebuild::storage(&self.values, id)?;
        self.push(Value::Storage(storage))
    }

    fn call(&mut self) -> Parsed<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Value::Global(global) = *self.values.get(callable) else {
            return Err("calls what is no known function: the file is damaged".into());
        };
        // The same list may be copied again and again.
        self.copied += rebuild::copied(&self.values, global, arguments).len();
        if self.copied > MAX_VALUES {
            return Err(format!("copies more than {MAX_VALUES} items: it is no file of tensors"));
        }
        let value = rebuild::call(&self.values, global, arguments)?;
        self.push(value)
    }

    fn put(&mut self, code: u8) -> Parsed<()> {
        let index = match code {
            b'q' => self.reader.u8()?.into(),
            b'r' => self.reader.u32()?,
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        if index > MAX_MEMO {
            return Err(format!("memorises value {index}, expected at most {MAX_MEMO}: the file is damaged"));
        }
        let (top, index) = (self.top()?, index as usize);
        if self.memo.len() <= index {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(top);
        Ok(())
    }

    fn get(&mut self, code: u8) -> Parsed<()> {
        let index = if code == b'h' { self.reader.u8()?.into() } else { self.reader.u32()? };
        let found = self.memo.get(index as usize).copied().flatten();
        self.stack.push(found.ok_or_else(|| format!("uses value {index} before it is there: the file is damaged"))?);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Parsed<()> {
        if value == Value::None {
            self.stack.push(0);
            return Ok(());
        }
        if self.values.0.len() >= MAX_VALUES {
            return Err(format!("makes more than {MAX_VALUES} values: it is no file of tensors"));
        }
        self.stack.push(self.values.0.len() as Id);
        self.values.0.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Parsed<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Parsed<Id> {
        self.above_mark(self.stack.len().wrapping_sub(1))?;
        self.stack.last().copied().ok_or_else(empty)
    }

    /// Rejects the use of stack items below the last mark.
    fn above_mark(&self, position: usize) -> Parsed<()> {
        let mark = self.marks.last().copied().unwrap_or(0);
        if position < mark || position == usize::MAX { Err(empty()) } else { Ok(()) }
    }

    /// The items above the last mark.
    fn pop_mark(&mut self) -> Parsed<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }
}

fn empty() -> String {
    "takes more from the stack than is on it: the file is damaged".into()
}

fn pairs(items: Vec<Id>) -> Parsed<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        return Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect());
    }
    Err("has a key without a value: the file is damaged".into())
}

fn opaque<'a>(_: &[u8]) -> Value<'a> {
    Value::Opaque
}

/// A little-endian integer in two's complement.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::LongInt(bytes);
    }
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut array = [if negative { 0xff } else { 0 }; 8];
    array.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    Value::Int(i64::from_le_bytes(array))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(program: &[u8]) -> Parsed<Value<'_>> {
        let done = run(program, 0)?;
        Ok(done.values.get(done.root).clone())
    }

    #[test]
    fn numbers_and_containers() {
        assert_eq!(root(b"\x80\x02K\x07.").unwrap(), Value::Int(7));
        assert_eq!(root(b"\x8a\x01\xff.").unwrap(), Value::Int(-1));
        assert_eq!(root(b"\x8a\x00.").unwrap(), Value::Int(0));
        assert_eq!(root(b"J\xfe\xff\xff\xff.").unwrap(), Value::Int(-2));
        assert!(matches!(root(b"\x8b\x09\0\0\x00123456789.").unwrap(), Value::LongInt(b"123456789")));
        let done = run(b"(K\x01K\x02t.", 0).unwrap();
        assert_eq!(done.values.sizes(done.root).unwrap(), [1, 2]);
        // A list that contains itself ends.
        assert!(matches!(root(b"]q\x00h\x00a.").unwrap(), Value::List(_)));
    }

    #[test]
    fn programs_are_refused_by_name() {
        for (program, name) in [
            (&b"cposix\nsystem\nX\x02\0\0\0ls\x85R."[..], "posix.system"),
            (b"\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
            (b"(X\x02\0\0\0lsios\nsystem\n.", "os.system"),
            (b"\x8c\x02os\x8c\x0bpath.exists\x93.", "os.path.exists"),
            (b"ctorch\nload\n.", "torch.load"),
        ] {
            let message = root(program).unwrap_err();
            assert!(message.contains(&format!("`{name}`")), "{message}");
        }
    }

    #[test]
    fn broken_programs_are_errors() {
        for program in [
            &b""[..],
            b".",
            b"K",
            b"h\x01.",
            b"R.",
            b"t.",
            b"\x85.",
            b"(K\x01K\x02K\x03u.",
            b"}K\x01s.",
            b"K\x01K\x02s.",
            b"NNR.",
            b"X\xff\xff\xff\xffabc.",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
            b"r\xff\xff\xff\xff.",
            b"Nr\xff\xff\xff\xff.",
            b"\x82\x01.",
            b"P0\n.",
            b"cabc",
            b"K\x01(0.",
        ] {
            assert!(root(program).is_err(), "{program:?}");
        }
        let marks = [b"(".repeat(1 << 20), b".".to_vec()].concat();
        assert!(root(&marks).is_err());
        let many = [b"K\x01".repeat(MAX_VALUES + 1), b".".to_vec()].concat();
        assert!(root(&many).unwrap_err().contains("more than"));
    }
}
