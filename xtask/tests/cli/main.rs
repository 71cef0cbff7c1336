//! The program as users meet it: started in a checkout of the test's own.

mod commands;
mod setup;
mod support;
