// The configuration of tidemarkd: a TOML file, every key optional. deploy/tidemarkd.toml is the annotated example.
//
// What is wrong with a file is one Error: its object is "file:line", its text names the key and what is allowed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/limits.h"
#include "base/status.h"

namespace tidemark::server {

struct Config {
  struct Server {
    std::string listen = "0.0.0.0:7443";  // port 0: the kernel chooses
    std::string admin_socket;             // empty: DIR/admin.sock
    std::uint32_t shards = 0;             // 0: as many as there are cores, at most one per partition
    bool pin = true;
    std::string log_level = "info";
    std::string log_format = "text";
  } server;
  struct Limits {
    std::uint32_t sessions = limits::kSessionsMaxDefault;
    std::uint32_t handshakes = limits::kHandshakesInFlightMax;  // in flight, per shard
    std::uint32_t per_source_handshakes = 200;  // begun per second by one address; bursts of four times that
    std::uint64_t session_credit = limits::kSessionCreditMax;  // bytes
    std::uint64_t memory = 512_MiB;                            // of frame buffers, all shards together
  } limits;
  struct Storage {
    std::uint64_t segment_size = limits::kSegmentSizeDefault;
    std::uint32_t reserve_segments = limits::kReserveSegments;
    std::uint64_t free_space_min = 0;  // bytes; 0: what pruning needs (storage/space.h), for each partition
    double high_water = 0.85;          // shares of the file system: above it machines are slowed,
    double full_water = 0.95;          // above it they are paused (server/watermark.h)
    std::uint32_t commits_in_flight = 2;
    std::uint64_t index_cache = 64_MiB;         // per partition
    std::uint64_t settle_after = 3600;          // seconds
    std::uint64_t settle_rate = 128_MiB;        // bytes per second and partition
    std::uint64_t verify_rate = 256_MiB;        // bytes per second, of the whole server: new data, read back once
    std::uint64_t scrub_rate = 64_MiB;          // the same: everything, again and again
    std::uint64_t scrub_interval = 7 * 86'400;  // seconds; 0: only when it is asked for
    bool encryption = false;
    std::string master_key_file;  // empty: DIR/master.key
  } storage;
  struct Nbd {
    std::string socket;            // empty: DIR/nbd.sock; "none": no unix socket
    std::string listen;            // empty: no TCP
    std::string tls = "required";  // "off": TCP without
    std::uint32_t threads = 0;     // 0: twice the cores, 4 at least
    std::uint32_t connections = 256;
    std::uint64_t cache = 128_MiB;   // of decoded blocks
    std::uint64_t memory = 256_MiB;  // of requests under way
  } nbd;
  struct Alarms {
    std::uint32_t no_point_minutes = 10;
  } alarms;
  struct Retention {
    std::uint64_t removal_holdoff = 86'400;  // seconds
  } retention;
};

// `origin` names the text in errors.
Result<Config> parse_config(std::string_view text, const std::string& origin);
Result<Config> load_config(const std::string& path);

// What `tidemarkd init` writes: every key with its default, as a comment.
std::string default_config_text(const std::string& listen);

// "64MiB", "1GiB", "4096", "512 KiB". Code::invalid_argument when it is none.
Result<std::uint64_t> parse_size(std::string_view text);

// "90s", "15m", "24h", "2d", "0s", in seconds. Code::invalid_argument when it is none.
Result<std::uint64_t> parse_duration(std::string_view text);

// HOST:PORT with the port written out, as agents are told it.
bool is_agent_address(const std::string& text);
// An IP address with a port that is written out; port 0 too.
bool is_listening_address(const std::string& text);

}  // namespace tidemark::server
