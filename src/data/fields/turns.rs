//! Turns of a conversation, with the images and videos that they show.

use super::super::{BadSample, IMAGE_MARKER, ImageSource, Record, SampleResult, Turn, VIDEO_MARKER, VideoSource};
use super::content::Content;
use super::media::MediaReader;
use super::names;
use super::value::{Row, Value, list_in};
use crate::processor::Role;

/// Conversation that is read turn by turn.
pub(super) struct Dialogue<'a> {
    media: &'a MediaReader,
    pub turns: Vec<Turn>,
    images: Places<ImageSource>,
    videos: Places<VideoSource>,
}

/// Places of images or videos in the order of the conversation: `None` stands for one of the record's own fields.
type Places<T> = Vec<Option<T>>;

impl<'a> Dialogue<'a> {
    pub fn new(media: &'a MediaReader) -> Self {
        Self { media, turns: Vec::new(), images: Vec::new(), videos: Vec::new() }
    }

    /// Adds the turns of a conversation.
    pub fn add_all(&mut self, value: &Value, field: &str) -> SampleResult<()> {
        let unexpected = || {
            let message = format!("field `{field}` is {}, expected a list of turns", value.shown());
            BadSample::BrokenRecord(message)
        };
        match value {
            Value::List(turns) => turns.iter().enumerate().try_for_each(|(n, turn)| self.add_object(turn, n + 1)),
            // A table has a conversation as the text of its JSON.
            Value::Text(text) => match list_in(text).map_err(|e| e.about(&format!("field `{field}`")))? {
                Some(list) => self.add_all(&list, field),
                None => Err(unexpected()),
            },
            _ => Err(unexpected()),
        }
    }

    fn add_object(&mut self, turn: &Value, number: usize) -> SampleResult<()> {
        let Value::Object(fields) = turn else {
            let message = format!("turn {number} is {}, expected an object with `role` and `content`", turn.shown());
            return Err(BadSample::BrokenRecord(message));
        };
        let in_turn = |e: BadSample| e.about(&format!("turn {number}"));
        let added = match names::one(&names::set(fields, names::ROLE), "conversations").map_err(in_turn)? {
            Some(role) => self.add_named(role.value, fields),
            None => self.add_exchange(fields),
        };
        added.map_err(in_turn)
    }

    /// Adds a turn with a role.
    fn add_named(&mut self, role: &Value, fields: &Row) -> SampleResult<()> {
        let role = role_of(role)?;
        let content = names::one(&names::set(fields, names::CONTENT), "conversations")?;
        if let (None, Some(call)) = (content, names::set(fields, &["tool_calls", "function_call"]).first()) {
            return Err(tools(call.name));
        }
        // A turn of nothing but white space is kept as it is.
        let blank = fields.iter().find(|(name, _)| names::CONTENT.contains(&name.as_str())).map(|(_, value)| value);
        match content.map(|content| content.value).or(blank) {
            Some(content) => self.add(role, content),
            None => Err(BadSample::BrokenRecord("has no text: expected `content` or `value`".into())),
        }
    }

    /// Adds a question and its answer that are one object.
    fn add_exchange(&mut self, fields: &Row) -> SampleResult<()> {
        let side = |names| names::one(&names::set(fields, names), "conversations");
        let (Some(asked), Some(replied)) = (side(names::ASKED)?, side(names::REPLIED)?) else {
            let keys: Vec<_> = fields.iter().map(|(key, _)| key.as_str()).collect();
            let message = format!("has the keys {}: expected `role` and `content`", super::brief(&keys.join(", ")));
            return Err(BadSample::BrokenRecord(message));
        };
        self.add(Role::User, asked.value)?;
        self.add(Role::Assistant, replied.value)
    }

    /// Adds a turn of this content.
    pub fn add(&mut self, role: Role, content: &Value) -> SampleResult<()> {
        let Content { text, images, videos } = match role {
            // As `<image>`, tags are ordinary words in an answer.
            Role::Assistant => Content::new(content, self.media)?,
            _ => Content::new(content, self.media)?.with_tagged_images(self.media)?,
        };
        if role == Role::Assistant && !(images.is_empty() && videos.is_empty()) {
            let message = "an answer has an image or video, but only text can be learned: move it to a user's turn";
            return Err(BadSample::BrokenRecord(message.into()));
        }
        let turn = Turn { role, text };
        add_places(&mut self.images, images, turn.markers(IMAGE_MARKER));
        add_places(&mut self.videos, videos, turn.markers(VIDEO_MARKER));
        self.turns.push(turn);
        Ok(())
    }

    /// The record, with images and videos of its own fields at the places that are left for them.
    pub fn into_record(
        mut self,
        id: String,
        images: Vec<ImageSource>,
        videos: Vec<VideoSource>,
    ) -> SampleResult<Record> {
        if images.is_empty() {
            self.read_image_markers_as_videos(videos.len());
        }
        let markers = self.images.len();
        let images = fill(self.images, images).map_err(|images| BadSample::ImageMarkers { markers, images })?;
        let markers = self.videos.len();
        let videos = fill(self.videos, videos).map_err(|videos| BadSample::VideoMarkers { markers, videos })?;
        Record::with_videos(id, images, videos, self.turns)
    }
}

impl Dialogue<'_> {
    /// Takes `<image>` as the marker of the record's videos, if there are as many and no image: LLaVA's files of videos
    /// have no other marker.
    fn read_image_markers_as_videos(&mut self, videos: usize) {
        let is_named = |images: &Places<ImageSource>| images.iter().any(Option::is_some);
        if videos == 0 || self.images.len() != videos || is_named(&self.images) || !self.videos.is_empty() {
            return;
        }
        self.images.clear();
        for turn in self.turns.iter_mut().filter(|turn| turn.role != Role::Assistant) {
            turn.text = turn.text.replace(IMAGE_MARKER, VIDEO_MARKER);
        }
    }
}

/// Adds the media of a turn's parts, or as many places as the turn has markers.
fn add_places<T>(places: &mut Places<T>, parts: Places<T>, markers: usize) {
    let unnamed = markers.saturating_sub(parts.len());
    places.extend(parts);
    places.extend(std::iter::repeat_with(|| None).take(unnamed));
}

/// Media at their places; without places, those of the record's own fields. The error is the number of all media, if
/// it is not the number of places.
fn fill<T: PartialEq>(places: Places<T>, own: Vec<T>) -> Result<Vec<T>, usize> {
    if places.is_empty() {
        return Ok(own);
    }
    let given = places.iter().flatten().count();
    // A list of the images that parts name already.
    if given == places.len() && given == own.len() && places.iter().flatten().eq(&own) {
        return Ok(own);
    }
    let all = given + own.len();
    if all != places.len() {
        return Err(all);
    }
    let mut own = own.into_iter();
    Ok(places.into_iter().filter_map(|place| place.or_else(|| own.next())).collect())
}

fn role_of(value: &Value) -> SampleResult<Role> {
    let role = value.to_text().unwrap_or_default();
    match role.trim().to_lowercase().as_str() {
        "system" | "developer" => Ok(Role::System),
        "user" | "human" | "prompter" => Ok(Role::User),
        "assistant" | "gpt" | "model" | "bot" | "chatgpt" | "ai" => Ok(Role::Assistant),
        name @ ("tool" | "tools" | "function" | "function_call" | "tool_call" | "observation" | "ipython") => {
            Err(tools(name))
        }
        _ => {
            let message = format!("the role is {}, expected system, user (human) or assistant (gpt)", value.shown());
            Err(BadSample::BrokenRecord(message))
        }
    }
}

fn tools(name: &str) -> BadSample {
    let name = super::brief(name);
    BadSample::BrokenRecord(format!("`{name}`: calls of tools cannot be trained on: remove them from the conversation"))
}
