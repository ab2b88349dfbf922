//! What reports that are web pages have in common: one style, text that is no markup, and where
//! values lie on an axis. A page takes nothing from anywhere else.

mod axis;
mod text;

pub(crate) use axis::{LogAxis, spread, step};
pub(crate) use text::Text;

/// How they look, on light and on dark ground.
pub(crate) const STYLE: &str = include_str!("html/style.css");
