//! Data sets: LLaVA records, shapes world, loading and collating.
