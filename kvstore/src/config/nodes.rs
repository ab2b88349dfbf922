//! Memory nodes that the arena is to lie on.

use super::ConfigError;
use super::raw::Several;

/// The nodes that have memory: no others can give any.
const WITH_MEMORY: &str = "/sys/devices/system/node/has_memory";
/// As many as any Linux knows.
const MAX_NODES: u64 = 1024;

/// One node, or a list of different ones, each of which this machine has.
pub(super) fn check(key: &'static str, raw: &Several<u64>) -> Result<Vec<u32>, ConfigError> {
    // A kernel that knows of no nodes says nothing: what it refuses then is told by `status`.
    let list = std::fs::read_to_string(WITH_MEMORY).unwrap_or_default();
    check_against(key, raw, list.trim())
}

fn check_against(
    key: &'static str,
    raw: &Several<u64>,
    there: &str,
) -> Result<Vec<u32>, ConfigError> {
    let given = raw.as_slice();
    let refused = |allowed: &str| ConfigError::Value {
        key,
        found: format!("{given:?}"),
        allowed: allowed.to_owned(),
    };
    let mut nodes = Vec::new();
    for node in given {
        let node = u32::try_from(*node).ok().filter(|node| u64::from(*node) < MAX_NODES);
        match node.filter(|node| !nodes.contains(node)) {
            Some(node) => nodes.push(node),
            None => return Err(refused("a memory node, 0..=1023, or a list of different ones")),
        }
    }
    if nodes.is_empty() {
        return Err(refused("a memory node, 0..=1023, or a list of different ones"));
    }
    if !there.is_empty() && !nodes.iter().all(|node| is_in(there, *node)) {
        return Err(refused(&format!("nodes with memory of this machine: {there}")));
    }
    Ok(nodes)
}

/// Whether a list such as `0-1,3` names the node.
fn is_in(list: &str, node: u32) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let numbers = first.parse().ok().zip(last.parse().ok());
        numbers.is_some_and(|(first, last): (u32, u32)| (first..=last).contains(&node))
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn only_nodes_of_the_machine_are_taken_each_once() {
        let check = |given: &[u64], there: &str| {
            let given = Several::List(given.to_vec());
            check_against("arena.numa_node", &given, there).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[3, 0], "0-1,3"), Ok(vec![3, 0]));
        assert_eq!(check(&[7], ""), Ok(vec![7]), "nothing is known of the machine");
        let missing = check(&[0, 2], "0-1,3").unwrap_err();
        assert!(missing.contains("arena.numa_node = [0, 2]") && missing.contains("0-1,3"));
        for wrong in [&[][..], &[1024], &[1, 1], &[u64::MAX]] {
            assert!(check(wrong, "0-2000").unwrap_err().contains("0..=1023"), "{wrong:?}");
        }
    }
}
