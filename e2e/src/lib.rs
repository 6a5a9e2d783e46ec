//! Tests of fleetbox on real machines; they are in `tests/`, and this library is empty.
