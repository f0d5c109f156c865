"""What can be asked and how it is answered, in English and Chinese: the documented set of wordings.

`ASK[skill][language]` are wordings with fields in braces; the answer functions below write the one form in which the
model answers. Times are the stamp the model read, copied: `47.0 seconds`, `第47.0秒`; both are linked by the page.
"""

from __future__ import annotations

from collections.abc import Sequence

LANGUAGES = ("en", "zh")

COLOURS = {
    "red": ("红色", "红"),
    "orange": ("橙色", "橙"),
    "yellow": ("黄色", "黄"),
    "green": ("绿色", "绿"),
    "blue": ("蓝色", "蓝"),
    "purple": ("紫色", "紫"),
    "black": ("黑色", "黑"),
    "white": ("白色", "白"),
}
SHAPES = {  # plural; Chinese: the name answers use, then names people use
    "circle": ("circles", ("圆形", "圆", "圆圈")),
    "square": ("squares", ("方形", "正方形", "方块")),
    "triangle": ("triangles", ("三角形", "三角")),
    "star": ("stars", ("星形", "五角星", "星星")),
    "heart": ("hearts", ("心形", "爱心", "心")),
    "cross": ("crosses", ("十字形", "十字")),
}

ASK: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {
        "en": (
            "What is in the picture?",
            "What is in this picture?",
            "What do you see?",
            "What can you see in the picture?",
            "What does the picture show?",
            "What is shown in the image?",
            "What is this?",
            "Describe the picture.",
            "Describe this image.",
            "Name the shapes in the picture.",
            "List the shapes.",
            "Which shapes are in the picture?",
            "Which objects are there?",
            "Tell me what is in the image.",
            "What's in the picture?",
            "what is in the picture",
            "What shapes do you see?",
        ),
        "zh": (
            "图里有什么？",
            "图中有什么？",
            "图片里有什么？",
            "这张图里有什么？",
            "这张图片里有什么？",
            "图里有哪些图形？",
            "你看到了什么？",
            "画面里有什么？",
            "这是什么？",
            "描述这张图片。",
            "请描述一下这张图。",
            "图片中有哪些形状？",
            "请说出图里的图形。",
            "里面有什么东西？",
            "图里有什么",
            "看看这张图里有什么",
        ),
    },
    "colour": {
        "en": (
            "What colour is the {shape}?",
            "What color is the {shape}?",
            "Which colour does the {shape} have?",
            "Tell me the color of the {shape}.",
        ),
        "zh": ("{shape}是什么颜色？", "{shape}是什么颜色的？", "图里的{shape}是什么颜色？", "说出{shape}的颜色。"),
    },
    "shape": {
        "en": (
            "What shape is the {colour} object?",
            "Which shape is {colour}?",
            "What is the {colour} one?",
            "What shape is the {colour} one?",
        ),
        "zh": ("{colour}的是什么形状？", "{colour}的图形是什么？", "{colour}的是什么？", "哪个形状是{colour}的？"),
    },
    "is": {
        "en": (
            "Is there a {colour} {shape}?",
            "Is there a {colour} {shape} in the picture?",
            "Do you see a {colour} {shape}?",
            "Does the picture show a {colour} {shape}?",
            "Can you see a {colour} {shape}?",
        ),
        "zh": (
            "有{colour}{shape}吗？",
            "图里有{colour}{shape}吗？",
            "图片里有没有{colour}{shape}？",
            "有没有{colour}的{shape}？",
            "你看到{colour}{shape}了吗？",
        ),
    },
    "count": {
        "en": (
            "How many {things} are there?",
            "How many {things} are in the picture?",
            "How many {things} do you see?",
            "How many {things} can you see?",
            "How many {things}?",
            "Count the {things}.",
            "Count the {things} in the picture.",
            "What is the number of {things}?",
            "how many {things}",
        ),
        "zh": (
            "有几个{things}？",
            "图里有几个{things}？",
            "图中有多少个{things}？",
            "图片里有多少个{things}？",
            "一共有几个{things}？",
            "数一数{things}。",
            "{things}有几个？",
            "{things}有多少个？",
            "多少个{things}？",
        ),
    },
    "where": {
        "en": (
            "Where is the {thing}?",
            "Where is the {thing} in the picture?",
            "Locate the {thing}.",
            "Find the {thing}.",
            "Locate the {thing} and report bbox coordinates in JSON format.",
            "Where is the {thing}? Report bbox coordinates in JSON format.",
            "Give the bounding box of the {thing}.",
            "Box the {thing}.",
            "Show me the {thing}.",
            "Draw a box around the {thing}.",
            "Point to the {thing}.",
        ),
        "zh": (
            "{thing}在哪里？",
            "{thing}在哪？",
            "{thing}在什么位置？",
            "图里的{thing}在哪里？",
            "找出{thing}。",
            "框出{thing}。",
            "请框出{thing}，用JSON格式输出bbox坐标。",
            "定位{thing}，以JSON格式输出坐标。",
            "请找到{thing}的位置。",
            "把{thing}圈出来。",
            "在图中标出{thing}。",
        ),
    },
    "read": {
        "en": (
            "What does it say?",
            "What does the picture say?",
            "What is written in the picture?",
            "What is written here?",
            "Read the text.",
            "Read the text in the picture.",
            "What text is in the picture?",
            "Which word is shown?",
            "What word is this?",
            "Read it.",
            "What does the text say?",
            "What is the text in this image?",
            "What number is shown?",
        ),
        "zh": (
            "写的是什么？",
            "上面写的是什么？",
            "图里写了什么？",
            "图上写着什么？",
            "图片里的文字是什么？",
            "读出图中的文字。",
            "读一下上面的字。",
            "这是什么字？",
            "图中有什么文字？",
            "文字内容是什么？",
            "写了什么？",
            "这是什么数字？",
        ),
    },
    "when": {
        "en": (
            "When does the {thing} appear?",
            "When is the {thing} shown?",
            "When do you see the {thing}?",
            "When can I see the {thing}?",
            "At what time does the {thing} appear?",
            "At which second does the {thing} appear?",
            "At what time is the {thing} shown?",
            "When does the {thing} show up?",
            "When does the {thing} come?",
            "When does the {thing} first appear in the video?",
            "Find the moment the {thing} appears.",
            "Where in the video is the {thing}?",
            "when does the {thing} appear",
        ),
        "zh": (
            "{thing}什么时候出现？",
            "{thing}在什么时候出现？",
            "{thing}是什么时候出现的？",
            "什么时候出现{thing}？",
            "什么时候能看到{thing}？",
            "{thing}几秒出现？",
            "{thing}出现在第几秒？",
            "{thing}在第几秒出现？",
            "视频里{thing}什么时候出现？",
            "{thing}何时出现？",
            "找出{thing}出现的时间。",
            "{thing}在视频的什么时间？",
            "第几秒有{thing}？",
        ),
    },
    "what_at": {
        "en": (
            "What is shown at {time}?",
            "What is shown in the video at {time}?",
            "What do you see at {time}?",
            "What is there at {time}?",
            "What appears at {time}?",
            "What is on the screen at {time}?",
            "What is at {time}?",
            "What happens at {time}?",
            "Tell me what is shown at {time}.",
            "At {time}, what is shown?",
            "what is shown at {time}",
        ),
        "zh": (
            "{time}显示的是什么？",
            "{time}有什么？",
            "{time}出现了什么？",
            "{time}的时候有什么？",
            "{time}画面上是什么？",
            "视频{time}显示什么？",
            "在{time}能看到什么？",
            "{time}发生了什么？",
            "{time}画面里有什么？",
            "请告诉我{time}显示什么。",
        ),
    },
    "all_times": {
        "en": (
            "List every time the {thing} is shown.",
            "List every time the {thing} appears.",
            "List all times when the {thing} is shown.",
            "At which times is the {thing} shown?",
            "Give all the moments with the {thing}.",
            "Find every moment the {thing} is on the slide.",
            "Every time the {thing} appears?",
        ),
        "zh": (
            "列出{thing}每次出现的时间。",
            "列出所有出现{thing}的时间。",
            "{thing}都在什么时候出现？",
            "{thing}一共在哪些时间出现？",
            "找出所有有{thing}的时刻。",
            "{thing}在哪几秒出现？",
        ),
    },
    "span": {
        "en": (
            "What happens between {start} and {end}?",
            "What is shown between {start} and {end}?",
            "What appears from {start} to {end}?",
            "List what is shown from {start} to {end}.",
            "What do you see between {start} and {end}?",
            "Describe {start} to {end}.",
        ),
        "zh": (
            "{start}到{end}之间发生了什么？",
            "{start}到{end}有什么？",
            "从{start}到{end}出现了什么？",
            "列出{start}到{end}之间的内容。",
            "{start}至{end}显示了什么？",
        ),
    },
    "timeline": {
        "en": (
            "What is in the video?",
            "What happens in the video?",
            "Describe the video.",
            "List everything that appears in the video.",
            "What does the video show?",
            "Make a timeline.",
            "Summarize the video with times.",
            "List what is shown and when.",
        ),
        "zh": (
            "视频里有什么？",
            "视频里发生了什么？",
            "描述这个视频。",
            "列出视频里出现的所有内容。",
            "请做一个时间线。",
            "这个视频讲了什么？",
            "按时间列出视频内容。",
            "视频里依次出现了什么？",
        ),
    },
    "page": {
        "en": (
            "Which page says {text}?",
            "On which page is {text}?",
            "Where does it say {text}?",
            "Which page has {text}?",
            "Which page contains {text}?",
            "Find the page with {text}.",
            "What page is {text} on?",
            "Which page mentions {text}?",
            "Where is {text}?",
            "which page says {text}",
        ),
        "zh": (
            "第几页写着{text}？",
            "第几页有{text}？",
            "哪一页写着{text}？",
            "哪一页有{text}？",
            "哪页提到{text}？",
            "{text}在第几页？",
            "{text}在哪一页？",
            "{text}出现在第几页？",
            "找出有{text}的那一页。",
            "{text}在哪里？",
        ),
    },
    "page_says": {
        "en": (
            "What does page {page} say?",
            "What is on page {page}?",
            "What is written on page {page}?",
            "Read page {page}.",
            "What is the text of page {page}?",
        ),
        "zh": (
            "第{page}页写了什么？",
            "第{page}页写的是什么？",
            "第{page}页有什么？",
            "读一下第{page}页。",
            "第{page}页的内容是什么？",
        ),
    },
    "compare": {
        "en": (
            "Which picture has the {thing}?",
            "Which picture shows the {thing}?",
            "Which image has a {thing}?",
            "In which picture is the {thing}?",
            "In which picture do you see a {thing}?",
            "Which of the pictures has the {thing}?",
            "Which picture contains the {thing}?",
            "Where is the {thing}?",
        ),
        "zh": (
            "哪张图有{thing}？",
            "哪一张图里有{thing}？",
            "第几张图有{thing}？",
            "{thing}在哪张图里？",
            "{thing}在第几张图？",
            "哪张图片里有{thing}？",
            "哪一张有{thing}？",
            "{thing}在哪里？",
        ),
    },
    "picture_shows": {
        "en": ("What is in picture {number}?", "What does picture {number} show?", "Describe picture {number}."),
        "zh": ("第{number}张图里有什么？", "图{number}里有什么？", "第{number}张图片是什么？"),
    },
}

REFUSED = {
    "en": (
        "Hello",
        "Hi there!",
        "Who are you?",
        "What can you do?",
        "Help",
        "Thank you",
        "How are you?",
        "Good morning",
        "What is the capital of France?",
        "Write a poem about the sea.",
        "Tell me a joke.",
        "Translate this to French.",
        "What is 12 plus 30?",
        "Who won the game yesterday?",
        "Write a Python function that sorts a list.",
        "Explain how a car works.",
        "What is the weather today?",
        "Give me a recipe for bread.",
        "Sing a song.",
        "Who is the president?",
        "What is the meaning of life?",
        "How old are you?",
        "Solve this equation for x.",
        "What do people say in the video?",
        "Is this person happy?",
        "What brand is the car?",
        "How do I get to the station?",
        "Write an email to my boss.",
        "Summarize this book.",
        "What is the name of the man?",
        "Which animal is this?",
        "Is there a dog in the picture?",
        "How many people are in the room?",
        "What is the woman doing?",
        "Does the music get louder?",
        "Who is speaking?",
        "Where was this picture taken?",
        "Make the picture brighter.",
        "Play the video.",
        "Turn this design into HTML.",
        "Click the button.",
        "What is the price of this?",
        "Compare these two phones.",
        "What time is it now?",
        "Can you hear me?",
        "Convert the table to CSV.",
        "Write the HTML code of this page.",
        "Is the text true?",
        "Explain this chart.",
        "What language is this?",
        "Draw a cat.",
        "Tell me a story.",
        "How far is the moon?",
        "What should I eat tonight?",
        "Fix my code.",
        "Why is the sky blue?",
        "Who painted this?",
        "What is the man holding?",
        "Give me five ideas for a party.",
    ),
    "zh": (
        "你好",
        "你是谁？",
        "你会做什么？",
        "你能做什么？",
        "帮帮我",
        "谢谢",
        "你好吗？",
        "早上好",
        "法国的首都是哪里？",
        "写一首关于大海的诗。",
        "讲个笑话。",
        "把这个翻译成英文。",
        "12加30等于多少？",
        "昨天谁赢了比赛？",
        "写一个排序的程序。",
        "汽车是怎么工作的？",
        "今天天气怎么样？",
        "怎么做面包？",
        "唱首歌。",
        "总统是谁？",
        "人生的意义是什么？",
        "你多大了？",
        "解这个方程。",
        "视频里的人说了什么？",
        "这个人开心吗？",
        "这是什么牌子的车？",
        "去车站怎么走？",
        "帮我写一封邮件。",
        "总结这本书。",
        "这个男人叫什么名字？",
        "这是什么动物？",
        "图里有狗吗？",
        "房间里有几个人？",
        "这个女人在做什么？",
        "音乐变大声了吗？",
        "谁在说话？",
        "这张照片在哪里拍的？",
        "把图片调亮。",
        "播放视频。",
        "把这个设计变成网页。",
        "点击按钮。",
        "这个多少钱？",
        "比较这两部手机。",
        "现在几点了？",
        "你听得到我吗？",
        "把表格变成文件。",
        "写出这个网页的代码。",
        "这是真的吗？",
        "解释这张图表。",
        "这是什么语言？",
        "画一只猫。",
        "讲个故事。",
        "月亮有多远？",
        "今晚吃什么？",
        "修一下我的代码。",
        "天空为什么是蓝色的？",
        "这是谁画的？",
        "他手里拿着什么？",
        "他在什么时候打开电脑？",
    ),
}

REFUSAL = {
    "en": "I am a small demo model. I can name, count and find coloured shapes, read short words and numbers, and tell "
    "when they appear in a video or on which page of a PDF.",
    "zh": "我是一个小小的演示模型。我会说出、数出和找到彩色图形，读短的单词和数字，"
    "并说出它们在视频的什么时候或PDF的第几页出现。",
}


def thing(colour: str, shape: str, language: str, *, plural: bool = False) -> str:
    """`red circle`, `红色圆形`; an empty colour or shape leaves any."""
    if language == "zh":
        return f"{COLOURS[colour][0] if colour else ''}{SHAPES[shape][1][0] if shape else '图形'}"
    noun = (SHAPES[shape][0] if plural else shape) if shape else ("shapes" if plural else "shape")
    return f"{colour} {noun}".strip()


def a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def quoted(text: str, language: str) -> str:
    return f'"{text}"' if language == "en" else f"“{text}”"


def stamp(seconds: float, language: str) -> str:
    return f"{seconds:.1f} seconds" if language == "en" else f"第{seconds:.1f}秒"


def listed(names: Sequence[str], language: str) -> str:
    if language == "zh":
        return "、".join(names[:-1]) + ("和" if len(names) > 1 else "") + names[-1]
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def name_answer(things: Sequence[tuple[str, str]], language: str) -> str:
    """`A red circle and a blue square.` / `红色圆形和蓝色方形。`"""
    names = [thing(*one, language) for one in things]
    if language == "zh":
        return listed(names, language) + "。"
    text = listed([a(name) for name in names], language)
    return text[0].upper() + text[1:] + "."


def count_answer(number: int, colour: str, shape: str, language: str) -> str:
    if number == 0:
        return absent_answer(thing(colour, shape, language), language)
    if language == "zh":
        return f"有{number}个{thing(colour, shape, language)}。"
    noun = thing(colour, shape, language, plural=number > 1)
    return f"There {'are' if number > 1 else 'is'} {number} {noun}."


def absent_answer(what: str, language: str) -> str:
    """`what` is a thing or a quoted word."""
    return f"There is no {what}." if language == "en" else f"没有{what}。"


def never_answer(text: str, language: str) -> str:
    """Of a word in a clip; like `when_answer` up to where they part: by then every letter has been looked for."""
    text = quoted(text, language)
    return f"The {text} does not appear." if language == "en" else f"{text}没有出现。"


def no_page_answer(text: str, language: str) -> str:
    """Like `page_answer` up to where they part."""
    text = quoted(text, language)
    return f"{text} is on no page." if language == "en" else f"{text}不在任何一页。"


def is_answer(what: str, language: str) -> str:
    return f"Yes, there is {a(what)}." if language == "en" else f"有{what}。"


def where_answer(box: Sequence[int], label: str) -> str:
    """`box` is x1, y1, x2, y2 in 0..1000 of the picture."""
    numbers = ",".join(str(int(value)) for value in box)
    return f'```json\n[{{"bbox_2d":[{numbers}],"label":"{label}"}}]\n```'


def read_answer(lines: Sequence[str], language: str) -> str:
    said = listed([quoted(line, language) for line in lines], language)
    return f"It says {said}." if language == "en" else f"写的是{said}。"


def when_answer(what: str, seconds: float, language: str) -> str:
    if language == "en":
        return f"The {what} appears at {stamp(seconds, language)}."
    return f"{what}出现在{stamp(seconds, language)}。"


def all_times_answer(what: str, seconds: Sequence[float], language: str) -> str:
    stamps = [stamp(second, language) for second in seconds]
    if language == "en":
        return f"The {what} appears at {', '.join(stamps)}."
    return f"{what}出现在{'、'.join(stamps)}。"


def moments_answer(moments: Sequence[tuple[float, str]], language: str) -> str:
    """`61.0 seconds: a red circle; 75.0 seconds: "HELLO".` / `第61.0秒：红色圆形；第75.0秒：“HELLO”。`"""
    if not moments:
        return "Nothing is shown." if language == "en" else "没有内容。"
    if language == "en":
        return "; ".join(f"{stamp(seconds, language)}: {what}" for seconds, what in moments) + "."
    return "；".join(f"{stamp(seconds, language)}：{what}" for seconds, what in moments) + "。"


def page_answer(text: str, page: int, language: str) -> str:
    return (
        f"{quoted(text, language)} is on page {page}."
        if language == "en"
        else f"{quoted(text, language)}在第{page}页。"
    )


def page_says_answer(text: str, page: int, language: str) -> str:
    return (
        f"Page {page} says {quoted(text, language)}."
        if language == "en"
        else f"第{page}页写的是{quoted(text, language)}。"
    )


def compare_answer(number: int, language: str) -> str:
    return f"Picture {number}." if language == "en" else f"第{number}张图。"


def colour_answer(colour: str, shape: str, language: str) -> str:
    if language == "en":
        return f"The {shape} is {colour}."
    return f"{SHAPES[shape][1][0]}是{COLOURS[colour][0]}。"
