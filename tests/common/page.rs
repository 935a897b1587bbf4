//! Pages as XML.

use roxmltree::{Document, Node, ParsingOptions};

/// The page as XML.
pub fn parsed(page: &str) -> Document<'_> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(page, options).unwrap()
}

/// All text within.
pub fn text(node: Node<'_, '_>) -> String {
    let texts = node.descendants().filter(Node::is_text);
    texts.filter_map(|node| node.text()).collect()
}

/// The elements of a class.
pub fn with_class<'d>(page: &'d Document<'_>, class: &str) -> Vec<Node<'d, 'd>> {
    let nodes = page.descendants();
    let nodes = nodes.filter(|node| node.attribute("class") == Some(class));
    nodes.collect()
}
