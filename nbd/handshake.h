// The server's side of the handshake (fixed newstyle), without I/O: bytes in, bytes out, and questions to whoever knows
// the exports.
//
//   for (;;) switch (handshake.step(input)) {
//     case need_input:    all of `input` is used; come again with more
//     case find:          look for export name(), then found() or refused(). When found() says so, send output(): what
//                         is left of `input`, and comes, are requests
//     case list:          listed() or refused()
//     case start_tls:     send output(), then go on under TLS, with a Handshake that says so
//     case close:         send output(), close
//   }
//
// Everything that a client says is checked and bounded here; nothing of it is remembered but the names it asks for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "nbd/protocol.h"

namespace tidemark::nbd {

struct ExportInfo {
  std::uint64_t size = 0;
  bool read_only = true;
  std::string name;  // in full: `latest` resolved
  std::string description;
};

struct ListedExport {
  std::string name;
  std::string description;
};

class Handshake {
 public:
  enum class Tls : std::uint8_t {
    none,      // not to be had here
    required,  // nothing is told before it
    active,    // this is inside of it
  };
  enum class Step : std::uint8_t { need_input, find, list, start_tls, close };

  explicit Handshake(Tls tls);

  Step step(std::span<const std::byte>& input);

  const std::string& name() const { return name_; }  // asked for; empty: the default export
  bool found(const ExportInfo& info);                // true: the handshake is done
  void refused(const Error& why);
  void listed(std::span<const ListedExport> exports);

  std::string output() { return std::exchange(output_, {}); }  // to be sent before anything else
  bool structured() const { return structured_; }
  bool allocation() const { return allocation_; }  // base:allocation was agreed on for this export
  std::uint16_t transmission_flags(const ExportInfo& info) const;

  static constexpr std::size_t kOptionMax = 64_KiB;     // longer ones are refused
  static constexpr std::size_t kOptionSkipMax = 1_MiB;  // and read over; beyond that the client has to go
  static constexpr unsigned kOptionsMax = 1000;         // in one handshake

 private:
  static constexpr std::size_t kHeader = 16;

  Step option(std::span<const std::byte> data);
  Step starttls(std::span<const std::byte> data);
  Step info(std::span<const std::byte> data);
  Step meta_context(std::span<const std::byte> data);
  void reply(OptionReply kind, std::string_view data = {});
  void reply_header(OptionReply kind, std::size_t size);

  Tls tls_;
  std::string output_;
  std::string pending_;  // what came of a header or an option that is not whole
  bool greeted_ = false;
  bool no_zeroes_ = false;
  bool structured_ = false;
  bool allocation_ = false;
  bool ended_ = false;
  std::string allocation_name_;  // the export it was asked for
  unsigned options_ = 0;
  std::size_t skip_ = 0;
  // Of the option that is being answered.
  std::uint32_t code_ = 0;
  std::string name_;
  bool wants_name_ = false, wants_description_ = false;
};

}  // namespace tidemark::nbd
