//! What comes out of simulations: figures, and pages that show them.

mod collector;
mod fairness;
mod phase;
mod series;
mod summary;
mod tally;

pub use self::collector::{Collector, Distribution, Run};
pub use self::fairness::jain;
pub use self::phase::{PHASES, Phase, Timeline};
pub use self::series::{ClassPiece, LanePiece, Piece, Series};
pub use self::summary::{Counted, Figures, HOWS, LaneFigures, Named, Summary, TenantFigures, Times};

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use self::tests::test_run;
