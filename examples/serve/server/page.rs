//! The page at `/`, and example images for it.

use axum::extract::Path;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use haplovl::data::shapes::{ShapesConfig, Split};
use image::ImageFormat;

use super::error::{self, ApiError};

const PAGE: &str = include_str!("../page.html");
/// Side of an example image in pixels.
const SIDE: u32 = 336;

/// The page, whose own script and style alone run: whatever a prompt or an answer holds, it is shown as text.
pub async fn page() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data: blob:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, "no-referrer".into()),
        (header::CACHE_CONTROL, "no-store".into()),
    ];
    (headers, Html(PAGE.replace("__NONCE__", &nonce))).into_response()
}

/// A held-out scene of shapes world: `/examples/N.png`.
pub async fn example(Path(name): Path<String>) -> Result<Response, ApiError> {
    let Some(index) = name.strip_suffix(".png").and_then(|index| index.parse::<u32>().ok()) else {
        return Err(error::not_found().await);
    };
    let image = Split::Test.scene(index.into(), &ShapesConfig::default()).render(SIDE);
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).map_err(|e| ApiError::internal(e.to_string()))?;
    let headers = [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "max-age=86400")];
    Ok((headers, png.into_inner()).into_response())
}
