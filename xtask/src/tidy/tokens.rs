//! Tokens that syn does not parse: what stands within macro calls and attributes.

use proc_macro2::{Ident, TokenStream, TokenTree};

/// Returns all tokens in the order of the text, without the brackets around groups.
pub(crate) fn flat(tokens: TokenStream) -> Vec<TokenTree> {
    let mut all = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                // What comes before a bracket is no part of a path that goes on within it.
                all.push(TokenTree::Punct(proc_macro2::Punct::new(
                    ';',
                    proc_macro2::Spacing::Alone,
                )));
                all.extend(flat(group.stream()));
                all.push(TokenTree::Punct(proc_macro2::Punct::new(
                    ';',
                    proc_macro2::Spacing::Alone,
                )));
            }
            other => all.push(other),
        }
    }
    all
}

/// Returns every `a::b`, of two names at least.
pub(crate) fn paths(tokens: TokenStream) -> Vec<Vec<Ident>> {
    let tokens = flat(tokens);
    let mut found = Vec::new();
    let mut current: Vec<Ident> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Ident(ident) if colons == 2 && !current.is_empty() => {
                current.push(ident);
                colons = 0;
            }
            other => {
                found.push(std::mem::take(&mut current));
                colons = 0;
                current.extend(ident(other));
            }
        }
    }
    found.push(current);
    found.retain(|path| path.len() > 1);
    found
}

fn ident(token: TokenTree) -> Option<Ident> {
    match token {
        TokenTree::Ident(ident) => Some(ident),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(source: &str) -> Vec<String> {
        let paths = paths(source.parse().unwrap());
        let join = |path: &Vec<Ident>| path.iter().map(Ident::to_string).collect::<Vec<_>>().join("::");
        paths.iter().map(join).collect()
    }

    #[test]
    fn paths_are_found_between_other_tokens() {
        assert_eq!(text("x = a::b(c::d::e, f) => g: h"), ["a::b", "c::d::e"]);
        assert_eq!(text("$crate::a::b; c::<D>::e"), ["crate::a::b"]);
    }
}
