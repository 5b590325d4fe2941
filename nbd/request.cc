#include "nbd/request.h"

namespace tidemark::nbd {

namespace {

constexpr std::size_t kTextMax = 1024;

std::string chunk(const Request& request, Chunk kind, std::size_t size, bool done) {
  std::string head;
  head.reserve(32);
  put_big(head, kStructuredReplyMagic);
  put_big(head, done ? kDone : std::uint16_t{0});
  put_big(head, static_cast<std::uint16_t>(kind));
  put_big(head, request.cookie);
  put_big(head, static_cast<std::uint32_t>(size));
  return head;
}

// Which flags a command may have.
std::optional<std::uint16_t> flags_of(Command command, bool structured) {
  switch (command) {
    case Command::read: return structured ? kDf | kFua : kFua;
    case Command::write:
    case Command::trim:
    case Command::flush:
    case Command::cache: return kFua;
    case Command::write_zeroes: return kFua | kNoHole | kFastZero;
    case Command::block_status: return kReqOne | kFua;
    case Command::disconnect: return std::uint16_t{0xffff};
  }
  return std::nullopt;
}

}  // namespace

Errno errno_of(Code code) {
  switch (code) {
    case Code::ok: return Errno::none;
    case Code::invalid_argument: return Errno::invalid;
    case Code::permission_denied:
    case Code::unauthenticated: return Errno::not_permitted;
    case Code::no_space: return Errno::no_space;
    case Code::unsupported: return Errno::not_supported;
    case Code::cancelled:
    case Code::unavailable: return Errno::shutdown;
    case Code::busy: return Errno::no_memory;
    default: return Errno::io;
  }
}

Result<Request> parse_request(std::span<const std::byte, kRequestSize> bytes) {
  if (get_big<std::uint32_t>(bytes.data()) != kRequestMagic)
    return fail(Code::protocol, {}, "what came is no NBD request");
  Request request;
  request.flags = get_big<std::uint16_t>(bytes.data() + 4);
  request.command = static_cast<Command>(get_big<std::uint16_t>(bytes.data() + 6));
  request.cookie = get_big<std::uint64_t>(bytes.data() + 8);
  request.offset = get_big<std::uint64_t>(bytes.data() + 16);
  request.length = get_big<std::uint32_t>(bytes.data() + 24);
  return request;
}

std::optional<Refused> check_request(const Request& request, const ExportInfo& info, bool structured, bool allocation) {
  const auto flags = flags_of(request.command, structured);
  if (!flags) return Refused{Errno::invalid, "this server does not know the command"};
  if ((request.flags & ~*flags) != 0) return Refused{Errno::invalid, "the command has a flag that it cannot have"};
  const bool writes =
      request.command == Command::write || request.command == Command::trim || request.command == Command::write_zeroes;
  if (writes && info.read_only)
    return Refused{Errno::not_permitted, "recovery points are read-only: clone it to write"};
  if (request.command == Command::flush || request.command == Command::disconnect) return std::nullopt;
  if (request.offset > info.size || request.length > info.size - request.offset)
    return Refused{writes ? Errno::no_space : Errno::invalid, "the request reaches beyond the end of the disk"};
  const bool data = request.command == Command::read || request.command == Command::write;
  if (data && request.length > kRequestMax) return Refused{Errno::overflow, "more than 32 MiB in one request"};
  if (request.command == Command::block_status) {
    if (!allocation) return Refused{Errno::invalid, "base:allocation was not agreed on"};
    if (request.length == 0) return Refused{Errno::invalid, "the status of no bytes is asked for"};
  }
  return std::nullopt;
}

std::string simple_reply(const Request& request, Errno error) {
  std::string head;
  put_big(head, kSimpleReplyMagic);
  put_big(head, static_cast<std::uint32_t>(error));
  put_big(head, request.cookie);
  return head;
}

std::string data_chunk(const Request& request, std::uint64_t offset, std::size_t size, bool done) {
  std::string head = chunk(request, Chunk::offset_data, size + sizeof offset, done);
  put_big(head, offset);
  return head;
}

std::string hole_chunk(const Request& request, std::uint64_t offset, std::uint32_t size, bool done) {
  std::string head = chunk(request, Chunk::offset_hole, sizeof offset + sizeof size, done);
  put_big(head, offset);
  put_big(head, size);
  return head;
}

std::string done_chunk(const Request& request) { return chunk(request, Chunk::none, 0, true); }

std::string error_chunk(const Request& request, Errno error, std::string_view why) {
  why = why.substr(0, kTextMax);
  const bool place = request.command == Command::read;
  std::string head = chunk(request, place ? Chunk::error_offset : Chunk::error, 6 + why.size() + (place ? 8 : 0), true);
  put_big(head, static_cast<std::uint32_t>(error));
  put_big(head, static_cast<std::uint16_t>(why.size()));
  head += why;
  if (place) put_big(head, request.offset);
  return head;
}

std::string status_chunk(const Request& request, std::span<const StatusExtent> extents) {
  std::string head = chunk(request, Chunk::block_status, 4 + extents.size() * 8, true);
  put_big(head, kAllocationId);
  for (const StatusExtent& extent : extents) {
    put_big(head, extent.length);
    put_big(head, extent.flags);
  }
  return head;
}

}  // namespace tidemark::nbd
