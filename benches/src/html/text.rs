use std::fmt;

/// Text that means nothing to a browser, in an element or in an attribute.
pub(crate) struct Text<'a>(pub(crate) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // XML has no other control characters, not even escaped ones.
                char if char.is_control() && !matches!(char, '\n' | '\t') => f.write_str(" ")?,
                char => write!(f, "{char}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        let text = Text("<b>&\"'\u{1b}x\n").to_string();
        assert_eq!(text, "&lt;b&gt;&amp;&quot;&#39; x\n");
    }
}
