//! Environment variables and files that configure all Hugging Face hub clients.

use std::path::PathBuf;

use crate::{Error, Result, files};

const ENDPOINT: &str = "https://huggingface.co";
/// Largest token file in bytes.
const MAX_TOKEN: u64 = 4096;

/// Value of an environment variable; `None` if it is unset or empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether `HF_HUB_OFFLINE` forbids the network.
pub(super) fn offline() -> bool {
    variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value))
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// URL of the hub or of a mirror.
pub(super) fn endpoint() -> String {
    variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into())
}

/// Cache folder that all hub clients share.
pub(super) fn cache() -> Result<PathBuf> {
    match variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")) {
        Some(folder) => Ok(folder.into()),
        None => home().map(|home| home.join("hub")),
    }
}

fn home() -> Result<PathBuf> {
    let from = |name, below| variable(name).map(|folder| PathBuf::from(folder).join(below));
    from("HF_HOME", "")
        .or_else(|| from("XDG_CACHE_HOME", "huggingface"))
        .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")))
        .ok_or_else(|| Error::hub("there is no home folder for the cache: set HF_HOME to a folder"))
}

/// The user's token: `HF_TOKEN`, or the token file written by a login.
pub(super) fn token() -> Result<Option<String>> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return Ok(None);
    }
    if let Some(token) = variable("HF_TOKEN") {
        return checked_token(&token, "HF_TOKEN");
    }
    let path =
        variable("HF_TOKEN_PATH").map_or_else(|| Ok(home()?.join("token")), |path| Ok::<_, Error>(path.into()))?;
    if !files::exists(&path)? {
        return Ok(None);
    }
    checked_token(&files::read_text(&path, MAX_TOKEN)?, &path.display().to_string())
}

/// Token that is valid in a request header; `None` if it is blank.
fn checked_token(token: &str, origin: &str) -> Result<Option<String>> {
    let token = token.trim();
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Error::hub(format!(
            "the token in {origin} contains spaces or other invalid characters: copy it again"
        )));
    }
    Ok(Some(token.to_string()).filter(|token| !token.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hf_hub_offline_accepts_the_values_of_other_clients() {
        assert!(is_true("1") && is_true("True") && is_true("ON") && !is_true("0") && !is_true(""));
    }

    #[test]
    fn tokens_are_trimmed_and_checked() {
        assert_eq!(checked_token(" hf_abc\n", "").unwrap().as_deref(), Some("hf_abc"));
        assert_eq!(checked_token("\n", "").unwrap(), None);
        let message = checked_token("hf_abc\r\nx: y", "HF_TOKEN").unwrap_err().to_string();
        assert!(message.contains("HF_TOKEN") && !message.contains("hf_abc"), "{message}");
    }
}
