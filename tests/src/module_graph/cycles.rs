//! Cycles of a directed graph.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The successors of each node.
pub(super) type Graph = BTreeMap<usize, BTreeSet<usize>>;

/// Returns the strongly connected components with more than one node (Tarjan's algorithm).
pub(super) fn components(graph: &Graph) -> Vec<BTreeSet<usize>> {
    let (index, low) = (BTreeMap::new(), BTreeMap::new());
    let mut search = Search { graph, index, low, stack: Vec::new(), found: Vec::new() };
    for node in graph.keys() {
        if !search.index.contains_key(node) {
            search.visit(*node);
        }
    }
    search.found
}

struct Search<'a> {
    graph: &'a Graph,
    /// The order in which the nodes were visited.
    index: BTreeMap<usize, usize>,
    /// The smallest index that a node reaches.
    low: BTreeMap<usize, usize>,
    stack: Vec<usize>,
    found: Vec<BTreeSet<usize>>,
}

impl Search<'_> {
    fn visit(&mut self, node: usize) {
        let number = self.index.len();
        self.index.insert(node, number);
        self.low.insert(node, number);
        self.stack.push(node);
        for next in self.graph.get(&node).into_iter().flatten() {
            let reached = if !self.index.contains_key(next) {
                self.visit(*next);
                self.low[next]
            } else if self.stack.contains(next) {
                self.index[next]
            } else {
                continue;
            };
            let low = self.low[&node].min(reached);
            self.low.insert(node, low);
        }
        if self.low[&node] == number {
            let start = self.stack.iter().position(|other| *other == node);
            let component: BTreeSet<usize> =
                self.stack.split_off(start.unwrap_or_default()).into_iter().collect();
            if component.len() > 1 {
                self.found.push(component);
            }
        }
    }
}

/// Returns a shortest cycle through each node of a strongly connected component, which begins and
/// ends with this node.
pub(super) fn shortest_cycles(
    graph: &Graph,
    component: &BTreeSet<usize>,
) -> impl Iterator<Item = Vec<usize>> {
    component.iter().filter_map(|start| cycle_through(graph, component, *start))
}

fn cycle_through(graph: &Graph, component: &BTreeSet<usize>, start: usize) -> Option<Vec<usize>> {
    let mut previous = BTreeMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(node) = open.pop_front() {
        for next in graph.get(&node)?.intersection(component) {
            if *next == start {
                let mut cycle = vec![start, node];
                while let Some(before) = previous.get(&cycle[cycle.len() - 1]) {
                    cycle.push(*before);
                }
                cycle.reverse();
                return Some(cycle);
            }
            if let Entry::Vacant(entry) = previous.entry(*next) {
                entry.insert(node);
                open.push_back(*next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(usize, usize)]) -> Graph {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry(*from).or_default().insert(*to);
            graph.entry(*to).or_default();
        }
        graph
    }

    #[test]
    fn components_and_their_shortest_cycles_are_found() {
        let graph = graph(&[
            (1, 2),
            (2, 3),
            (3, 4),
            (4, 2),
            (3, 2),
            (4, 5),
            (5, 6),
            (6, 7),
            (7, 6),
            (1, 7),
        ]);
        let found = components(&graph);
        assert_eq!(found, [BTreeSet::from([6, 7]), BTreeSet::from([2, 3, 4])]);
        let shortest = |component| shortest_cycles(&graph, component).collect::<Vec<_>>();
        assert_eq!(shortest(&found[0]), [[6, 7, 6], [7, 6, 7]]);
        assert_eq!(shortest(&found[1]), [&[2, 3, 2][..], &[3, 2, 3], &[4, 2, 3, 4]]);
    }

    #[test]
    fn acyclic_graph_has_no_components() {
        assert!(components(&graph(&[(1, 2), (1, 3), (2, 4), (3, 4)])).is_empty());
    }
}
