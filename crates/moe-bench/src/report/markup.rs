//! Text and numbers in HTML and SVG.
//!
//! The report is written so that it is also well-formed XML, which lets a strict parser check it.

use std::fmt::{self, Display, Formatter};

/// Text from data, made safe inside elements and inside quoted attributes.
pub(super) struct Text<'a>(pub(super) &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            '\n' | '\t' => write!(f, "{letter}"),
            // Not allowed in XML, and of no use on a page.
            _ if letter.is_control() || letter == '\u{fffe}' || letter == '\u{ffff}' => {
                f.write_str("\u{fffd}")
            }
            _ => write!(f, "{letter}"),
        })
    }
}

/// The name of an entry where a line may have to break: behind its separators, not inside a word.
pub(super) struct Name<'a>(pub(super) &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("<span>")?;
        for part in self.0.split_inclusive(['+', ':', '_']) {
            let more = if part.ends_with(['+', ':', '_']) { "<wbr/>" } else { "" };
            write!(f, "{}{more}", Text(part))?;
        }
        f.write_str("</span>")
    }
}

/// A coordinate in an SVG, rounded to what the eye can tell.
pub(super) struct At(pub(super) f64);

impl Display for At {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0 * 10.0).round() / 10.0)
    }
}

/// One string out of one piece per item.
pub(super) fn each<T>(
    items: impl IntoIterator<Item = T>,
    piece: impl FnMut(T) -> String,
) -> String {
    items.into_iter().map(piece).collect()
}

/// A section of the page: heading, a paragraph that says what to look at, and the body.
pub(super) fn section(id: &str, heading: &str, lede: &str, body: &str) -> String {
    let lede =
        if lede.is_empty() { String::new() } else { format!("<p class=\"lede\">{lede}</p>\n") };
    format!("<section id=\"{id}\">\n<h2>{heading}</h2>\n{lede}{body}\n</section>\n")
}

/// Opens an SVG that scales with the page. `label` is read out in its place.
pub(super) fn open_svg(class: &str, width: f64, height: f64, label: &str) -> String {
    format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
        At(width),
        At(height),
        Text(label)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_data_becomes_markup() {
        assert_eq!(
            Text("<a href='x'>\"&\u{1b}").to_string(),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;\u{fffd}"
        );
    }

    #[test]
    fn a_name_breaks_behind_its_separators() {
        assert_eq!(Name("ssr").to_string(), "<span>ssr</span>");
        let name = Name("a+<b:c_d").to_string();
        assert_eq!(name, "<span>a+<wbr/>&lt;b:<wbr/>c_<wbr/>d</span>");
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!([1.0, 2.04, 100.26].map(|x| At(x).to_string()), ["1", "2", "100.3"]);
    }
}
