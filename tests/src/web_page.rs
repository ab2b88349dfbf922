/// That a report that is a web page needs nothing from elsewhere, is well-formed, looks right on dark
/// ground, and has no figure that is none and no name that is given twice.
///
/// # Panics
/// If it is not so.
pub fn check_web_page(page: &str) {
    let own = page.replacen("http://www.w3.org/1999/xhtml", "", 1);
    for foreign in ["<script", "http:", "https:", "src=", "href=", "url(", "@import", "@font-face"]
    {
        assert!(!own.contains(foreign), "{foreign}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("<title id").count(), "untold pictures");
    assert!(page.contains("prefers-color-scheme: dark"), "it is for light ground only");
    assert!(!page.contains("NaN") && !page.contains("inf"), "a figure is none");
    check_tags(page);
    let ids: Vec<&str> =
        page.split(" id=\"").skip(1).filter_map(|id| id.split('"').next()).collect();
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
}

/// That all of its tags are closed in order, and all of their quotes.
fn check_tags(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("its first line");
    while let Some((_, tag)) = rest.split_once('<') {
        let (tag, behind) = tag.split_once('>').expect("a tag ends");
        rest = behind;
        let quotes = tag.matches('"').count();
        assert_eq!((quotes % 2, quotes / 2), (0, tag.matches("=\"").count()), "<{tag}>");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("a name");
        match tag {
            tag if tag.starts_with('/') => assert_eq!(open.pop(), Some(name)),
            tag if tag.ends_with('/') => {}
            _ => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}
